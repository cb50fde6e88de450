"""A variable's data as Python objects. pandas and pyarrow are imported only for tables."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Sequence
from typing import Any

from kernelsvc.errors import NotSupported
from kernelsvc.model.objects import ValueData

_TABLES = ("pandas.", "polars.", "numpy.ndarray")


def joined(parts: Sequence[ValueData]) -> Any:
    """Return the value that these parts are, in order.

    Raises:
        NotSupported: a library for the format is missing here.
    """
    first = parts[0]
    table = first.type.startswith(_TABLES)
    if first.format == "json" and not table:
        values = [json.loads(part.data) for part in parts]
        return values[0] if len(values) == 1 else [each for value in values for each in value]
    try:
        import pandas

        frames = [_frame(pandas, part) for part in parts]
    except ImportError as error:
        why = f"{error.name} is not installed here, which {first.format} needs. Ask for another format."
        raise NotSupported(why) from error
    return frames[0] if len(frames) == 1 else pandas.concat(frames, ignore_index=True)


def _frame(pandas: Any, part: ValueData) -> Any:
    data = io.BytesIO(part.data)
    if part.format == "csv":
        return pandas.read_csv(data)
    if part.format == "json":
        return pandas.DataFrame(json.loads(part.data))
    if part.format == "parquet":
        return pandas.read_parquet(data)
    pyarrow: Any = importlib.import_module("pyarrow")

    return pyarrow.ipc.open_stream(data).read_all().to_pandas()
