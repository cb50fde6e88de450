"""``AsyncSession``: every operation on one session as a method."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from kernelsvc.client.address import quoted, without_none
from kernelsvc.client.connection import RpcConnection
from kernelsvc.client.http import Rest, query
from kernelsvc.client.streams import AsyncEvents, AsyncPages, AsyncStream, SessionRpc
from kernelsvc.client.transfer import save, target_of, upload_body
from kernelsvc.client.values import Cell, FileInfo, new_id, read
from kernelsvc.model.objects import Checkpoint, SessionInfo, Variable

Format = Literal["ipynb", "html", "py"]
#: The server's own bound on a page.
_PAGE = 1000


class AsyncSession:
    """One session: variables that live from cell to cell, a log, a notebook.

    Get one from ``AsyncClient.create_session`` or ``AsyncClient.session``. As a
    context manager it closes what ``create_session`` or ``branch`` made.

    Attributes:
        id: the session's id.
        details: the session as the server last described it.
    """

    def __init__(self, connection: RpcConnection, rest: Rest, details: SessionInfo, *, keep: bool) -> None:
        self.id = details.id
        self.details = details
        self._rest = rest
        self._keep = keep
        self._rpc = SessionRpc(connection, details.id, details.last_seq)
        self._call = self._rpc.call

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.details.state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._keep:
            await self.close()

    async def _described(self, method: str, *, repeat: bool = False, **params: Any) -> SessionInfo:
        answer = await self._call(method, repeat=repeat, **params)
        self.details = read(answer, SessionInfo)
        return self.details

    async def info(self) -> SessionInfo:
        """The session as it is now."""
        return await self._described("get", repeat=True)

    # --- cells ------------------------------------------------------------------------

    async def run(
        self,
        code: str,
        *,
        cell: str | None = None,
        timeout: float | None = None,
        silent: bool = False,
        on_error: Literal["stop", "continue"] = "stop",
        on_disconnect: Literal["keep", "interrupt"] = "keep",
        metadata: Mapping[str, Any] | None = None,
        wait: Literal["finished", "queued"] = "finished",
    ) -> Cell:
        """Run a cell and wait for its end.

        A broken link does not matter: the cell's id makes it safe to ask again,
        and nothing runs twice. Cancelling stops the waiting; the cell goes on
        (``interrupt`` ends it).

        Args:
            code: source text as in a Jupyter cell; magics and top-level ``await`` work.
            cell: an id of your own; the same id again gives the same cell and runs nothing.
            timeout: seconds of wall time, after which the cell is interrupted.
            silent: whether it stays out of history and execution count.
            on_error: whether a failure cancels the cells queued behind it.
            on_disconnect: whether losing every client interrupts it.
            metadata: kept with the cell in the log and the notebook.
            wait: ``queued`` returns as soon as it is accepted.

        Raises:
            KernelsvcError: the cell was refused. A cell that fails is no exception; see ``Cell.raise_for_error``.
        """
        request = _cell_params(code, cell, timeout, silent, on_error, on_disconnect, metadata)
        return self._rpc.cell(await self._call("execute", repeat=True, wait=wait, **request))

    def stream(
        self,
        code: str,
        *,
        cell: str | None = None,
        timeout: float | None = None,
        silent: bool = False,
        allow_stdin: bool = False,
        on_error: Literal["stop", "continue"] = "stop",
        on_disconnect: Literal["keep", "interrupt"] = "keep",
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncStream:
        """Run a cell and get its events as they happen, the last being ``cell_finished``.

        The cell is sent when the iteration begins. Each event comes exactly once, across reconnects too.

        The arguments are those of ``run``. With ``allow_stdin`` the cell's ``input()`` asks, by an
        ``input_requested`` event that ``input`` answers; without, it fails.
        """
        request = _cell_params(code, cell, timeout, silent, on_error, on_disconnect, metadata)
        return AsyncStream(self._rpc, {**request, "allow_stdin": allow_stdin})

    async def batch(
        self, cells: Sequence[str | Mapping[str, Any]], *, on_error: Literal["stop", "continue"] = "stop"
    ) -> list[Cell]:
        """Run several cells in one trip.

        Args:
            cells: code, or objects as the API's ``session.execute`` takes them.
            on_error: ``stop`` cancels the cells behind one that fails.
        """
        requests = [{"code": cell} if isinstance(cell, str) else dict(cell) for cell in cells]
        for request in requests:
            request.setdefault("cell", new_id("cell"))
        answer = await self._call("batch", repeat=True, cells=requests, on_error=on_error)
        return [self._rpc.cell(item) for item in answer]

    async def cell(self, id: str) -> Cell:
        """A cell of this session, as it is now."""
        return self._rpc.cell(await self._call("cell", repeat=True, cell=id))

    async def cells(self) -> list[Cell]:
        """Every cell so far, in order."""
        found: list[Cell] = []
        offset: int | None = 0
        while offset is not None:
            answer = await self._call("cells", repeat=True, limit=_PAGE, offset=offset)
            found += [self._rpc.cell(item) for item in answer["cells"]]
            offset = answer["next_offset"]
        return found

    async def output(
        self, cell: str, *, name: Literal["stdout", "stderr"] = "stdout", offset: int = 0, limit: int = 1 << 20
    ) -> dict[str, Any]:
        """A piece of what a cell wrote, whatever its output budget cut: ``{text, next_offset, total, ...}``."""
        answer = await self._call("output", repeat=True, cell=cell, name=name, offset=offset, limit=limit)
        return read(answer, dict[str, Any])

    def events(self, after: int = 0, *, follow: bool = True) -> AsyncEvents:
        """Every event of the session after a position, old ones first, then live, until the session is closed.

        Args:
            after: the ``seq`` of the last event that is known already.
            follow: False ends with the last event that there is now.
        """
        return AsyncEvents(self._rpc, after) if follow else AsyncPages(self._rpc, self._rest, after)

    async def input(self, cell: str, text: str) -> None:
        """Answer a cell that waits in ``input()``."""
        await self._call("input", cell=cell, text=text)

    async def interrupt(self) -> SessionInfo:
        """Interrupt the running cell, as Ctrl-C would."""
        return await self._described("interrupt")

    async def restart(self) -> SessionInfo:
        """A new kernel with empty variables; the log goes on."""
        return await self._described("restart")

    async def complete(self, code: str, cursor_pos: int | None = None) -> dict[str, Any]:
        """Jupyter's completion: ``{matches, cursor_start, cursor_end, ...}``."""
        return read(await self._call("complete", repeat=True, code=code, cursor_pos=cursor_pos), dict[str, Any])

    async def inspect(self, code: str, cursor_pos: int | None = None, detail_level: int = 0) -> dict[str, Any]:
        """Jupyter's inspection: ``{found, data, metadata}``."""
        answer = await self._call("inspect", repeat=True, code=code, cursor_pos=cursor_pos, detail_level=detail_level)
        return read(answer, dict[str, Any])

    async def variables(self) -> list[Variable]:
        """The names that the session's cells have made."""
        return read(await self._call("variables", repeat=True), list[Variable])

    # --- time travel --------------------------------------------------------------------

    async def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep the present state, to roll back to or to branch from."""
        return read(await self._call("checkpoint", name=name), Checkpoint)

    async def checkpoints(self) -> list[Checkpoint]:
        """What there is to go back to."""
        return read(await self._call("checkpoints", repeat=True), list[Checkpoint])

    async def drop_checkpoint(self, checkpoint: str) -> None:
        """Give a checkpoint's memory back."""
        await self._call("drop_checkpoint", checkpoint=checkpoint)

    async def rollback(self, to: str | None = None) -> SessionInfo:
        """Undo: the variables of an earlier moment. The log and the notebook keep what was undone, marked so.

        Args:
            to: a checkpoint's name or id, or a cell's id (the state before it); default: before the last cell.
        """
        return await self._described("rollback", to=to)

    async def branch(
        self,
        *,
        at: str | None = None,
        count: int = 1,
        labels: Mapping[str, str] | None = None,
        limits: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> list[AsyncSession]:
        """New sessions that start from this one's live state, independent from then on.

        Args:
            at: a checkpoint to start from instead.
            count: how many.
            labels: for finding them again.
            limits: for each of them, where they are to be lower than this session's.
            force: go on although something will be lost.

        Raises:
            CannotFork: ``details["reasons"]`` says what stands in the way.
        """
        answer = await self._call(
            "branch",
            at=at,
            count=count,
            labels=dict(labels or {}) or None,
            limits=dict(limits or {}) or None,
            force=True if force else None,
        )
        found = read(answer, list[SessionInfo])
        return [AsyncSession(self._rpc.connection, self._rest, info, keep=False) for info in found]

    async def hibernate(self) -> SessionInfo:
        """Give the memory back; the next cell wakes the session with its variables."""
        return await self._described("hibernate")

    async def close(self) -> SessionInfo:
        """End the session. Its log, notebook and files stay readable."""
        return await self._described("close", repeat=True)

    # --- files and records -------------------------------------------------------------

    @property
    def _path(self) -> str:
        return f"/v1/sessions/{quoted(self.id)}"

    async def upload(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> str:
        """Put a file into the session's working directory.

        Args:
            source: a path of this machine, or the content as bytes.
            name: its name there, with ``/`` for directories; needed for bytes.

        Returns:
            The name it has there.
        """
        body, size, name = upload_body(source, name)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        await self._rest.raw("PUT", f"{self._path}/files/{quoted(name)}", body, headers=headers, repeat=True)
        return name

    async def download(self, name: str) -> bytes:
        """A file's content, in memory; see ``save`` for large ones."""
        return await self._rest.raw("GET", f"{self._path}/files/{quoted(name)}")

    async def save(self, name: str, to: str | os.PathLike[str] = ".") -> Path:
        """Copy a file of the session to this machine; a directory keeps its name. Whole or not at all."""
        target = target_of(Path(to), name)
        await save(self._rest, f"{self._path}/files/{quoted(name)}", target)
        return target

    async def delete(self, name: str) -> None:
        """Remove a file from the session's working directory."""
        await self._rest.raw("DELETE", f"{self._path}/files/{quoted(name)}", repeat=True)

    async def files(self, path: str = "", *, recursive: bool = False) -> list[FileInfo]:
        """What lies in the session's working directory, or in a directory of it; the first 10,000 names."""
        where = f"{self._path}/files/{quoted(path)}"
        options = {"limit": 10_000, "recursive": "true" if recursive else None}
        return read((await self._rest.json("GET", query(where, **options)))["files"], list[FileInfo])

    async def notebook(self, format: Format = "ipynb") -> bytes:
        """The session as a notebook, at any time, also when it is closed."""
        return await self._rest.raw("GET", query(f"{self._path}/notebook", format=format))

    async def journal(self) -> bytes:
        """The log itself, one JSON object a line: what ``kernelsvc verify`` checks."""
        return await self._rest.raw("GET", f"{self._path}/journal")


def _cell_params(
    code: str,
    cell: str | None,
    timeout: float | None,
    silent: bool,
    on_error: str,
    on_disconnect: str,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    optional = without_none(timeout_seconds=timeout, metadata=dict(metadata or {}) or None)
    return {
        "code": code,
        "cell": cell or new_id("cell"),
        "silent": silent,
        "on_error": on_error,
        "on_disconnect": on_disconnect,
        **optional,
    }
