"""JSON of a message's content, encoded as Jupyter does, at the cost of one call of the C encoder."""

from __future__ import annotations

import json
from typing import Any

from jupyter_client.jsonutil import json_clean, json_default

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=json_default).encode
#: The C encoder, created once: ``JSONEncoder.encode`` creates one for each of the fifteen texts of a cell. It does not
#: detect circular references, which end in a RecursionError instead.
_make_encoder: Any = getattr(json.encoder, "c_make_encoder", None)
_encode_fast = _make_encoder and _make_encoder(
    None, json_default, json.encoder.encode_basestring, None, ":", ",", False, False, False
)


def encode(value: Any) -> bytes:
    """Return ``value`` as JSON. Values that JSON lacks (NaN, bytes, dates) are converted as Jupyter does."""
    if not value:
        return b"{}"
    try:
        text = "".join(_encode_fast(value, 0)) if _encode_fast else _dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = _dumps(json_clean(value))
    return text.encode("utf-8", "replace")
