"""Find the session of a tool call by id, by a name of the caller's choice, or the caller's default session."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from kernelsvc.errors import NotFound
from kernelsvc.model.cluster.ids import DIGITS
from kernelsvc.model.objects import SessionInfo, SessionState
from kernelsvc.protocol.method_params import SessionPage
from kernelsvc.tools.backend import ToolBackend

#: The label with a session's name. Another connection, or a later server, finds the session by it.
LABEL = "tool-session"
#: Form of a session's id. A name of this form counts as an id.
_ID = re.compile(rf"s_{DIGITS}\Z")
_PAGE = 20
#: Most cells of a caller whose last line is known.
MAX_READ = 256

RECREATED = "Your session of that name has ended. This is a new one, without its variables and files."


class CallerState:
    """A cache of one caller's sessions, name to id. It may be lost: labels find the sessions again.

    Attributes:
        default: name or id of the session of calls that do not name one.
        title: display name of new sessions.
        ids: ids by name.
        read: by cell that still ran, the last line of its output that the caller has.
        lock: held while a session is created, so that concurrent calls create one.
    """

    def __init__(self, default: str, title: str | None = None) -> None:
        self.default = default
        self.title = title
        self.ids: dict[str, str] = {}
        self.read: dict[str, int] = {}
        self.lock = asyncio.Lock()


class SessionResolver:
    """Finds and creates sessions over one backend."""

    def __init__(self, backend: ToolBackend, caller: CallerState) -> None:
        self._backend, self._caller = backend, caller

    def lines_read(self, cell: str) -> int:
        """Return the last line of a cell's output that the caller has read, or 0."""
        return self._caller.read.get(cell, 0)

    def note_read(self, cell: str, line: int | None) -> None:
        """Note the last line that the caller has read. None if the cell has ended, and is read whole again later."""
        self._caller.read.pop(cell, None)
        if line is not None:
            self._caller.read[cell] = line
            while len(self._caller.read) > MAX_READ:
                self._caller.read.pop(next(iter(self._caller.read)))

    async def find(self, wanted: str | None) -> SessionInfo:
        """Find an existing session. A closed session is only found by its id.

        Raises:
            NotFound: there is none.
        """
        if (by_id := await self._by_id(wanted or self._caller.default)) is not None:
            return by_id
        found = await self._named(wanted or self._caller.default)
        if found is None:
            raise NotFound(_missing(wanted))
        return found

    async def open(self, wanted: str | None) -> tuple[SessionInfo, str | None]:
        """Find an open session, or create it. Return it, and a note for the model if it replaces one that has ended.

        Raises:
            NotFound: ``wanted`` is the id of no session of this principal.
            KernelsvcError: the server can't create a session now.
        """
        if (by_id := await self._by_id(wanted or self._caller.default)) is not None:
            return by_id, None
        name = wanted or self._caller.default
        async with self._caller.lock:
            # Looked up under the lock: a concurrent call may be creating the session.
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
        """Get a session by id. Return None if ``wanted`` is a name.

        Raises:
            NotFound: ``wanted`` is the id of no session of this principal.
        """
        if not _ID.match(wanted):
            return None
        try:
            return await self._backend.call("session.get", {"session": wanted}, SessionInfo)
        except NotFound:
            advice = f"There is no session {wanted!r}. list_sessions shows yours. Or leave 'session' out."
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
        return "You have no session yet. run_code creates one."
    return f"There is no open session {wanted!r}. run_code with that name creates it, list_sessions shows yours."
