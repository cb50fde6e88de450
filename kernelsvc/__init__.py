"""kernelsvc: stateful IPython sessions for agents, on one machine.

A session is a forked kernel, a log and a notebook. See ``ARCHITECTURE.md``.

This module imports nothing of the server: a kernel process imports ``kernelsvc.guest``, and with it this module.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kernelsvc.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    """Import the clients at their first use (PEP 562)."""
    if name in ("Client", "AsyncClient"):
        from kernelsvc import client

        return getattr(client, name)
    raise AttributeError(f"module 'kernelsvc' has no attribute {name!r}")
