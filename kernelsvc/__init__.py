"""kernelsvc: stateful IPython sessions for agents, on one machine.

A session is a forked kernel, a log and a notebook. See ``ARCHITECTURE.md``.

This module imports nothing of the server: a kernel process imports ``kernelsvc.guest``, and with it this module.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kernelsvc.client import AsyncClient, CellFailed, Client, ConnectionLost, Unreachable
    from kernelsvc.errors import (
        AtCapacity,
        BadRequest,
        CannotFork,
        Conflict,
        Forbidden,
        KernelsvcError,
        NotFound,
        QuotaExceeded,
        SessionClosed,
        Timeout,
        TooLarge,
        Unauthenticated,
    )

_CLIENT = ("AsyncClient", "CellFailed", "Client", "ConnectionLost", "Unreachable")

__all__ = [
    "AsyncClient",
    "AtCapacity",
    "BadRequest",
    "CannotFork",
    "CellFailed",
    "Client",
    "Conflict",
    "ConnectionLost",
    "Forbidden",
    "KernelsvcError",
    "NotFound",
    "QuotaExceeded",
    "SessionClosed",
    "Timeout",
    "TooLarge",
    "Unauthenticated",
    "Unreachable",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import the clients and errors at their first use (PEP 562)."""
    if name in _CLIENT:
        from kernelsvc import client

        return getattr(client, name)
    if name in __all__:
        from kernelsvc import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'kernelsvc' has no attribute {name!r}")
