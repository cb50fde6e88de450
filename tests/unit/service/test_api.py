"""The port of the service: values, ids and streams, so that a front on another machine can forward every call."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import typing
from typing import Any

import msgspec
import pytest

from kernelsvc.service import api

#: ``client`` names a connection: it is compared and never called. ``Any`` stands for JSON.
VALUES = (bool, int, float, str, bytes, type(None), Any, object)
COLLECTIONS = (
    list,
    tuple,
    dict,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Mapping,
    collections.abc.Iterable,
)


def ports() -> list[type]:
    """Return the protocols of ``service.api``."""
    return [one for one in vars(api).values() if inspect.isclass(one) and getattr(one, "_is_protocol", False)]


def foreign(hint: Any) -> list[Any]:
    """Return the parts of a type that are neither values nor ports nor callbacks over them."""
    if hint is None or hint in VALUES or hint is Ellipsis or typing.get_origin(hint) is typing.Literal:
        return []
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is collections.abc.Callable:
        return [found for each in (*args[0], args[1]) for found in foreign(each)]
    if args:
        outside = [] if origin in COLLECTIONS or "Union" in str(origin) else [hint]
        return outside + [found for each in args for found in foreign(each)]
    if inspect.isclass(hint) and (issubclass(hint, (msgspec.Struct, enum.Enum)) or hint in ports()):
        return []
    return [hint]


def signatures() -> list[Any]:
    """Return each method of each port, with its name."""
    found = []
    for port in ports():
        for name, member in vars(port).items():
            function = member.fget if isinstance(member, property) else member
            if inspect.isfunction(function) and not name.startswith("_"):
                found.append(pytest.param(port, function, id=f"{port.__name__}.{name}"))
    return found


@pytest.mark.parametrize(("port", "method"), signatures())
def test_only_values_ids_and_streams_cross_the_port(port: type, method: Any) -> None:
    hints = typing.get_type_hints(method, vars(api), dict(vars(typing)))
    assert [found for hint in hints.values() for found in foreign(hint)] == [], method.__qualname__


def test_every_port_is_reached_from_the_service() -> None:
    named = {name for _, name in ((one, one.__name__) for one in ports())}
    assert {"ServiceApi", "FilesApi", "FileReader", "FileWriter", "ByteStream"} <= named
