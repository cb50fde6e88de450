"""Which session a call means: an id, a name of the caller's, or its default one; made on first use."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from kernelsvc.errors import NotFound
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.protocol.methods import SessionPage
from kernelsvc.tools.backend import ToolBackend

#: The label that carries a session's name, so that it is found again by another connection or a later server.
LABEL = "tool-session"
#: What a session's id looks like; a name of this shape would be taken for one.
_ID = re.compile(r"^s_[0-9a-f]{16}$")
_PAGE = 20

RECREATED = "Your session of that name has ended; this is a new one with empty variables (its files are new too)."


class CallerState:
    """What calls of one caller remember of each other: ids by name. May be forgotten; labels find them again.

    Attributes:
        default: the name, or the id, that stands for none.
        title: what new sessions are called, for people.
    """

    def __init__(self, default: str, title: str | None = None) -> None:
        self.default = default
        self.title = title
        self.ids: dict[str, str] = {}
        self.lock = asyncio.Lock()


class SessionResolver:
    """Finds and makes sessions over one backend."""

    def __init__(self, backend: ToolBackend, caller: CallerState) -> None:
        self._backend, self._caller = backend, caller

    async def find(self, wanted: str | None) -> SessionInfo:
        """A session that exists; closed ones by their id alone.

        Raises:
            NotFound: there is none; the message says how one is made.
        """
        if (by_id := await self._by_id(wanted or self._caller.default)) is not None:
            return by_id
        found = await self._named(wanted or self._caller.default)
        if found is None:
            raise NotFound(_missing(wanted))
        return found

    async def open(self, wanted: str | None) -> tuple[SessionInfo, str | None]:
        """A session to work in, made if need be; and something to tell the model.

        Raises:
            NotFound: an id that is nobody's.
            KernelsvcError: no session can be made now.
        """
        if (by_id := await self._by_id(wanted or self._caller.default)) is not None:
            return by_id, None
        name = wanted or self._caller.default
        async with self._caller.lock:
            known = name in self._caller.ids
            found = await self._named(name)
            if found is not None:
                return found, None
            return await self._make(name, wanted), RECREATED if known else None

    async def _make(self, name: str, wanted: str | None) -> SessionInfo:
        params: dict[str, Any] = {"labels": {LABEL: name}}
        if title := wanted or self._caller.title:
            params["name"] = title
        made = await self._backend.call("session.create", params, SessionInfo)
        self._caller.ids[name] = made.id
        return made

    async def _by_id(self, wanted: str) -> SessionInfo | None:
        """The session of this id; None for what is no id but a name."""
        if not _ID.match(wanted):
            return None
        try:
            return await self._backend.call("session.get", {"session": wanted}, SessionInfo)
        except NotFound:
            advice = f"There is no session {wanted!r}; list_sessions shows yours, or leave 'session' out."
            raise NotFound(advice) from None

    async def _named(self, name: str) -> SessionInfo | None:
        if (id := self._caller.ids.get(name)) is not None:
            with contextlib.suppress(NotFound):
                found = await self._backend.call("session.get", {"session": id}, SessionInfo)
                if found.state is not SessionState.CLOSED:
                    return found
        params = {"label": f"{LABEL}={name}", "limit": _PAGE}
        page = await self._backend.call("session.list", params, SessionPage)
        for each in page.sessions:
            if each.state is not SessionState.CLOSED:
                self._caller.ids[name] = each.id
                return each
        return None


def _missing(wanted: str | None) -> str:
    if wanted is None:
        return "You have no session yet; run_code makes one."
    return f"There is no open session {wanted!r}; run_code with that name makes it, list_sessions shows yours."
