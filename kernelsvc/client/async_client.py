"""``AsyncClient``: the operations of the API as methods, over one WebSocket and HTTP.

``sync_client`` wraps these classes for code without an event loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

import msgspec

from kernelsvc.client.address import Address, find, quoted, without_none
from kernelsvc.client.connection import RpcConnection
from kernelsvc.client.http import Rest, query
from kernelsvc.client.offered import OfferedFunction, offered
from kernelsvc.client.sessions import AsyncSession, Format
from kernelsvc.client.tools import provider_of
from kernelsvc.client.tracing import request_meta
from kernelsvc.client.transfer import CONTENT, file_list, upload_body
from kernelsvc.client.values import Cell, FileInfo, new_id, read
from kernelsvc.model.objects import Deletion, SessionInfo
from kernelsvc.model.storage.workspaces import WorkspaceInfo

#: Maximum page size of the server.
_PAGE = 1000


class AsyncClient:
    """A connection to one kernelsvc server.

    The client reconnects by itself when the connection is lost or the server restarts. Pending calls continue, each
    event arrives once, and no cell runs twice. Use it as an async context manager, within one event loop.

    Args:
        url: ``http://HOST:PORT`` or ``unix:/path``. Default: ``KERNELSVC_URL``, then your own running server.
        token: default: ``KERNELSVC_TOKEN``, then that of your own running server.
        connect_seconds: time to try the first connection.
        retry_seconds: time to reconnect, after which pending calls fail with ``Unreachable``.
        provider: name of this program as the provider of its functions, if it needs one that stays the same.
        on_state: called with ``connected``, ``lost`` (reconnecting) or ``gone`` (given up) when the state of the
            connection changes. ``close`` calls it with nothing.
        on_behalf_of: for a backend: its name for the user who is served. Sessions belong to ``BACKEND/USER``, and the
            log names that as the principal. The token needs the scope ``delegate``.

    Raises:
        Unreachable: there is no ``url``, and no server of yours runs on this machine.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        connect_seconds: float = 5.0,
        retry_seconds: float = 60.0,
        provider: str = "",
        on_state: Callable[[str], None] | None = None,
        on_behalf_of: str | None = None,
    ) -> None:
        self.address: Address = msgspec.structs.replace(find(url, token), on_behalf_of=on_behalf_of)
        self._rpc = RpcConnection(
            self.address, connect_seconds=connect_seconds, retry_seconds=retry_seconds, on_state=on_state
        )
        self._rpc.provider_name = provider
        self._rest = Rest(self.address, connect_seconds=connect_seconds, retry_seconds=retry_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Sessions stay open until they are closed or expire."""
        await self._rpc.close()
        self._rest.close()

    @property
    def reconnects(self) -> int:
        """How often the client has lost the connection."""
        return self._rpc.reconnects

    # --- the server ---------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """Return the server's version, limits and confinement."""
        return read(await self._rpc.call("info", {}), dict[str, Any])

    async def templates(self) -> list[dict[str, Any]]:
        """Return the environments that sessions can use."""
        return read(await self._rpc.call("templates", {}), list[dict[str, Any]])

    async def execute_once(
        self,
        code: str | None = None,
        *,
        function: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        template: str | None = None,
        files: Mapping[str, str] | None = None,
        limits: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Cell:
        """Run code, or call a function, in a new session, and close the session.

        Args:
            code: source text to run.
            function: instead of code, the source of a lambda or a def. Its return value is the cell's ``value``.
            args: arguments of the function, as JSON values.
            kwargs: keyword arguments of the function.
            template: environment to fork.
            files: files to create first in the working directory, name to text.
            limits: limits of the session, at most the server's.
            timeout: maximum wall time of the cell, in seconds.
            trace: of the cell, as in ``AsyncSession.run``.

        Raises:
            KernelsvcError: the server refused the request. A failed cell does not raise: see
                ``Cell.raise_for_error``.
        """
        body = without_none(
            code=code,
            function=function,
            template=template,
            timeout_seconds=timeout,
            args=list(args) or None,
            kwargs=dict(kwargs or {}) or None,
            files=dict(files or {}) or None,
            limits=dict(limits or {}) or None,
            _meta=request_meta(trace),
        )
        return read(await self._rpc.call("call", body), Cell)

    async def offer(self, /, *functions: Callable[..., Any] | OfferedFunction, **options: Any) -> None:
        """Let the code of all sessions of this token call functions of this program. See ``AsyncSession.offer``."""
        made = [each if isinstance(each, OfferedFunction) else offered(each, **options) for each in functions]
        await provider_of(self._rpc, self._rest).offer(made, None)

    def tool(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Offer the decorated function to all sessions of this token. See ``AsyncSession.tool``."""
        if function is None:
            return partial(self.tool, **options)
        provider_of(self._rpc, self._rest).start_offer([offered(function, **options)], None)
        return function

    async def withdraw(self, *names: str) -> None:
        """Withdraw functions that this program offers to all sessions of the token. Without names: all."""
        await provider_of(self._rpc, self._rest).withdraw(names or None, None)

    # --- sessions -------------------------------------------------------------------

    async def create_session(
        self,
        *,
        template: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        limits: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        sidecar_of: str | None = None,
        beside: str | None = None,
        checkpoint: Literal["auto", "every"] | None = None,
        tools: Mapping[str, Sequence[str]] | None = None,
        mounts: Sequence[str] | None = None,
        workspace: str | None = None,
        keep: bool = False,
    ) -> AsyncSession:
        """Create a session, ready for its first cell.

        Args:
            template: environment to fork, or the name of a Jupyter kernelspec.
            name: display name.
            labels: labels to filter sessions by.
            limits: limits such as ``{"memory_bytes": 1 << 30, "cell_seconds": 60}``, at most the server's.
            env: environment variables of the kernel.
            sidecar_of: id of another session. The new session uses the same working directory, and ends with it.
            beside: the old name of ``sidecar_of``, accepted for one release.
            checkpoint: ``every`` makes a checkpoint after each cell, before the next one. Default: when it is cheap.
            tools: the functions of clients that its code may call, ``{"allow": ["github.*"], "deny": ["*.delete_*"]}``.
                Default: all that are offered.
            mounts: names of the server's mounts to show at ``/data/NAME``, read-only.
            workspace: a folder that outlives the session, at ``/workspace``: ``NAME``, or another principal's as
                ``OWNER/NAME``. Makes an own one that does not exist.
            keep: leave the session open at the end of its ``with`` block.

        Raises:
            KernelsvcError: ``at_capacity``, ``quota_exceeded``, ``limit_too_high``, ``sandbox_unavailable``, …
        """
        params = without_none(
            template=template,
            checkpoint=checkpoint,
            name=name,
            labels=dict(labels or {}) or None,
            limits=dict(limits or {}) or None,
            env=dict(env or {}) or None,
            sidecar_of=sidecar_of if beside is None else beside,
            tools=None if tools is None else {name: [*names] for name, names in tools.items()},
            mounts=list(mounts or ()) or None,
            workspace=workspace,
            idempotency_key=new_id("create"),
            attach=False,
        )
        info = read(await self._rpc.call("session.create", params), SessionInfo)
        return AsyncSession(self._rpc, self._rest, info, keep=keep)

    async def workspaces(self) -> list[WorkspaceInfo]:
        """List the workspaces that you may use."""
        return read(await self._rpc.call("workspace.list", {}), list[WorkspaceInfo])

    async def set_workspace(
        self, workspace: str, *, shared_with: Sequence[str] | None = None, max_bytes: int | None = None
    ) -> WorkspaceInfo:
        """Make a workspace, or change one of yours.

        Args:
            workspace: its name.
            shared_with: names of other principals that may use it, with * as a wildcard. None changes nothing.
            max_bytes: its quota, at most the server's. None changes nothing.

        Raises:
            KernelsvcError: ``quota_exceeded``, ``not_found``.
        """
        shares = None if shared_with is None else list(shared_with)
        params = {**_workspace(workspace), **without_none(shared_with=shares, max_bytes=max_bytes)}
        return read(await self._rpc.call("workspace.set", params), WorkspaceInfo)

    async def workspace(self, workspace: str) -> WorkspaceInfo:
        """Get a workspace with its size.

        Args:
            workspace: ``NAME`` or ``OWNER/NAME``.

        Raises:
            NotFound: there is none that you may use.
        """
        return read(await self._rpc.call("workspace.get", _workspace(workspace)), WorkspaceInfo)

    async def remove_workspace(self, workspace: str) -> None:
        """Remove a workspace with its files.

        Args:
            workspace: its name.

        Raises:
            Conflict: open sessions have it.
            NotFound: there is none, or it is another principal's.
        """
        await self._rpc.call("workspace.remove", _workspace(workspace))

    async def workspace_files(self, workspace: str, directory: str = "", *, recursive: bool = False) -> list[FileInfo]:
        """List the files of a workspace.

        Args:
            workspace: ``NAME`` or ``OWNER/NAME``.
            directory: a directory in it.
            recursive: also list the directories below.
        """
        info = await self.workspace(workspace)
        where = f"{_files_of(info)}{quoted(directory)}"
        return file_list(await self._rest.json("GET", query(where, recursive=str(recursive).lower())))

    async def download_from(self, workspace: str, name: str) -> bytes:
        """Return the content of a file of a workspace.

        Args:
            workspace: ``NAME`` or ``OWNER/NAME``.
            name: path in it.
        """
        where = f"{_files_of(await self.workspace(workspace))}{quoted(name)}"
        return await self._rest.raw("GET", where, headers=CONTENT)

    async def upload_to(self, workspace: str, source: str | os.PathLike[str] | bytes, name: str | None = None) -> str:
        """Copy a file, or bytes, into a workspace. Return its path there.

        Args:
            workspace: ``NAME`` or ``OWNER/NAME``.
            source: path on this machine, or the content.
            name: path in the workspace. The default is the file's name.

        Raises:
            TooLarge: it does not fit into the workspace's quota.
        """
        body, size, name = upload_body(source, name)
        where = f"{_files_of(await self.workspace(workspace))}{quoted(name)}"
        await self._rest.raw("PUT", where, body, headers={"Content-Length": str(size)}, repeat=True)
        return name

    async def session(self, id: str, *, keep: bool = True) -> AsyncSession:
        """Get a session by its id.

        Args:
            id: the session's id.
            keep: leave the session open at the end of its ``with`` block.

        Raises:
            NotFound: there is no such session, or another principal owns it.
        """
        info = read(await self._rpc.call("session.get", {"session": id}), SessionInfo)
        return AsyncSession(self._rpc, self._rest, info, keep=keep)

    async def sessions(
        self,
        *,
        state: str | None = None,
        label: str | None = None,
        limit: int | None = None,
        principal: str | None = None,
    ) -> list[SessionInfo]:
        """List your sessions, newest first, open and closed.

        Args:
            state: only sessions in this state.
            label: only sessions with this label, ``NAME`` or ``NAME=VALUE``.
            limit: maximum number of sessions. The default is all.
            principal: list the sessions of this principal, or of every one with ``*``. Needs the scope ``audit``.

        Raises:
            Forbidden: the token lacks the scope.
        """
        found: list[SessionInfo] = []
        page: str | None = None
        while True:
            size = _PAGE if limit is None else min(_PAGE, limit - len(found))
            params = without_none(state=state, label=label, limit=size, page=page, principal=principal)
            answer = await self._rpc.call("session.list", params)
            found += read(answer["sessions"], list[SessionInfo])
            page = answer["next_page"]
            if page is None or (limit is not None and len(found) >= limit):
                return found

    async def notebook(self, id: str, format: Format = "ipynb") -> bytes:
        """Return a session as a notebook, also if only the server's archive has it. See ``AsyncSession.notebook``."""
        return await self._rest.raw("GET", query(f"/v1/sessions/{quoted(id)}/notebook", format=format))

    async def journal(self, id: str) -> bytes:
        """Return the log of a session, also if only the server's archive has it. See ``AsyncSession.journal``."""
        return await self._rest.raw("GET", f"/v1/sessions/{quoted(id)}/journal")

    async def purge(self, id: str, *, force: bool = False) -> Deletion:
        """Delete a session for good: its log, notebook and files, also from the archive.

        Args:
            id: the session's id.
            force: end the session first if it is open.

        Returns:
            the signed record that the server keeps, without content.

        Raises:
            NotFound: there is no such session, or another principal owns it and the token lacks the scope ``operate``.
            Conflict: it is open, or it has branches or sidecars. Nothing was deleted.
        """
        return read(await self._rpc.call("session.purge", {"session": id, "force": force}), Deletion)


def _workspace(address: str) -> dict[str, Any]:
    """Return the parameters that name a workspace."""
    owner, slash, name = address.rpartition("/")
    return {"name": name, **({"owner": owner} if slash else {})}


def _files_of(info: WorkspaceInfo) -> str:
    return f"/v1/workspaces/{quoted(info.owner)}/{info.name}/files/"
