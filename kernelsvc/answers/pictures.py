"""Pictures of a cell, for OpenAI's items and for models that see."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from kernelsvc.model.objects import CellInfo
from kernelsvc.tools.result import MAX_PICTURE_BYTES, ImageContent

#: Most pictures of one cell.
MAX_PICTURES = 8
_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")


def pictures_of(cell: CellInfo) -> tuple[list[ImageContent], int]:
    """Return the images of a cell, one for each output, within the limits. Also return how many exceed the limits."""
    bundles = (output.get("data") for output in cell.outputs)
    found = [picture for bundle in bundles if isinstance(bundle, dict) and (picture := _picture(bundle))]
    kept: list[ImageContent] = []
    room = MAX_PICTURE_BYTES
    for picture in found:
        if len(kept) < MAX_PICTURES and len(picture.data) <= room:
            kept.append(picture)
            room -= len(picture.data)
    return kept, len(found) - len(kept)


def _picture(bundle: dict[str, Any]) -> ImageContent | None:
    for mime in _PICTURES:
        value = bundle.get(mime)
        if isinstance(value, list):
            value = "".join(map(str, value))
        if isinstance(value, str):
            try:
                return ImageContent(mime, base64.b64decode(value))
            except (binascii.Error, ValueError):
                continue
    return None
