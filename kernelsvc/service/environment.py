"""A session's environment variables and current directory, changed between two cells.

The values of environment variables are often secrets. They are sent to the
kernel as a request of their own and not as code of a cell, so they are neither
in the journal nor in a notebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kernelsvc.errors import BadRequest, NotSupported
from kernelsvc.model.objects import CellRequest, Principal
from kernelsvc.protocol import kernel_messages
from kernelsvc.service.registry import SessionRegistry
from kernelsvc.session import Session

#: The request to the kernel, which ``guest.environment`` answers. Running kernels know it by this name.
REQUEST = "kernelsvc_surroundings_request"
#: Seconds that a change may wait for the cell that runs.
WAIT_SECONDS = 3600.0


def require_texts(texts: Iterable[str]) -> None:
    """Check texts for a process. Linux takes each up to its first zero byte (execve(2), environ(7)).

    Raises:
        BadRequest: one has a zero byte.
    """
    if any("\0" in text for text in texts):
        raise BadRequest("Arguments, directories and environment variables can't hold a zero byte. Leave it out.")


class SessionEnvironment:
    """Change the environment of sessions. Implements ``EnvironmentApi``.

    Args:
        registry: all sessions.
    """

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry

    async def change(
        self, who: Principal, session: str, environ: Mapping[str, str | None], directory: str | None = None
    ) -> dict[str, str | None]:
        """Set environment variables, remove those whose value is None, and change the current directory.

        The kernel does it after the cells that were submitted before. If this is cancelled, it may happen anyway.

        Returns:
            The values before the change. The same call with them reverts it.

        Raises:
            NotSupported: the session's kernel is not a forked one.
            BadRequest: a name is not the name of a variable, or there is no such directory.
            KernelDead, SessionClosed, Timeout: nothing was changed.
        """
        found = self._registry.find(who, session, "run")
        if wrong := [name for name in environ if not name or "=" in name or "\0" in name]:
            raise BadRequest(f"{wrong[0]!r} is no name of an environment variable.")
        require_texts(value for value in environ.values() if value is not None)
        await self.resume(found)
        if found.info is not None and found.info.kind != "forked":
            raise NotSupported("Only Python sessions take environment variables here. Set them in the cell's code.")
        content = {"environ": dict(environ), "directory": directory}
        reply = await found.request(REQUEST, content, timeout=WAIT_SECONDS)
        if reply.get("status") != "ok":
            raise BadRequest(f"The kernel refused: {kernel_messages.text(reply.get('evalue'), 500)}.")
        before = kernel_messages.mapping(reply.get("before"))
        return {name: before[name] if isinstance(before.get(name), str) else None for name in environ}

    async def resume(self, session: Session) -> None:
        """Resume a session if it is hibernated.

        Raises:
            SessionClosed, KernelDead: it can't be resumed.
        """
        await session.settled()  # it may be on its way there, or back
        if session.hibernated:
            (cell,) = session.submit([CellRequest(code="", silent=True)])
            await session.wait(cell)
