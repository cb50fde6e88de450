"""What a session's cells find around them: changed between two cells, and on no record.

The values of variables are secrets as often as not. They go to the kernel beside
its cells, not in their code, and so stand neither in the log nor in a notebook.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernelsvc.errors import BadRequest, NotSupported
from kernelsvc.model.objects import CellRequest, Principal
from kernelsvc.protocol import kernel_events
from kernelsvc.service.leases import Find
from kernelsvc.session import Session

#: What the kernel understands (``guest.surroundings``).
REQUEST = "kernelsvc_surroundings_request"
#: Seconds that a change may wait for the cell that runs.
WAIT_SECONDS = 3600.0


class SessionEnvironment:
    """Changes them.

    Args:
        find: a session of a principal, for a scope.
    """

    def __init__(self, find: Find) -> None:
        self._find = find

    async def change(
        self, who: Principal, session: str, environ: Mapping[str, str | None], directory: str | None = None
    ) -> dict[str, str | None]:
        """Set variables of the environment, None removing one, and go to a directory.

        It happens when the cells before it have ended. Safe to cancel: it may happen anyway.

        Returns:
            what undoes the variables.

        Raises:
            NotSupported: a cold kernel.
            BadRequest: a name that can't be a variable's, or no such directory.
            KernelDead, SessionClosed, Timeout: nobody did it.
        """
        found = self._find(who, session, "run")
        if wrong := [name for name in environ if not name or "=" in name or "\0" in name]:
            raise BadRequest(f"{wrong[0]!r} is no name of an environment variable.")
        if any("\0" in value for value in environ.values() if value is not None):
            raise BadRequest("The value of an environment variable can't hold a zero byte.")
        await self.wake(found)
        if found.info is not None and found.info.kind != "forked":
            raise NotSupported("Only Python sessions take variables beside a cell; set them in the cell's code.")
        content = {"environ": dict(environ), "directory": directory}
        reply = await found.request(REQUEST, content, timeout=WAIT_SECONDS)
        if reply.get("status") != "ok":
            raise BadRequest(f"The kernel refused: {kernel_events.text(reply.get('evalue'), 500)}.")
        before = kernel_events.mapping(reply.get("before"))
        return {name: before[name] if isinstance(before.get(name), str) else None for name in environ}

    async def wake(self, session: Session) -> None:
        """See that the session has a kernel: one that sleeps is woken.

        Raises:
            SessionClosed, KernelDead: it can't have one.
        """
        await session.settled()  # it may be on its way there, or back
        if session.hibernated:
            (cell,) = session.submit([CellRequest(code="", silent=True)])
            await session.wait(cell)
