"""``AsyncSession``: the operations on one session as methods."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from kernelsvc.client import tables
from kernelsvc.client.address import quoted, without_none
from kernelsvc.client.connection import RpcConnection
from kernelsvc.client.http import Rest, query
from kernelsvc.client.offered import OfferedFunction, offered
from kernelsvc.client.programs import AsyncProgram, CommandResult, run_command, start_program
from kernelsvc.client.streams import AsyncEvents, AsyncPages, AsyncStream, SessionRpc
from kernelsvc.client.tools import AsyncCall, OnApproval, provider_of
from kernelsvc.client.tracing import request_meta
from kernelsvc.client.transfer import CONTENT, file_list, save, target_of, upload_body
from kernelsvc.client.values import Cell, FileInfo, new_id, read
from kernelsvc.model.events import ToolCalled
from kernelsvc.model.network.ports import PortAddress
from kernelsvc.model.objects import (
    CellView,
    Checkpoint,
    ProgramView,
    SessionInfo,
    ToolCallInfo,
    ValueData,
    ValueFormat,
    Variable,
)

Format = Literal["ipynb", "html", "py"]
#: Maximum page size of the server.
_PAGE = 1000


class AsyncSession:
    """One session: a kernel that keeps its variables from cell to cell, a log, a notebook.

    Get one from ``AsyncClient.create_session`` or ``AsyncClient.session``. Used as a context manager, a session from
    ``create_session`` or ``branch`` is closed at the end of the block.

    Attributes:
        id: the session's id.
        details: the last description of the session from the server.
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

    async def _described(self, method: str, **params: Any) -> SessionInfo:
        answer = await self._call(method, **params)
        self.details = read(answer, SessionInfo)
        return self.details

    async def info(self) -> SessionInfo:
        """Return the present description of the session."""
        return await self._described("get")

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
        checkpoint: Literal["auto", "every"] | None = None,
        changes: bool = False,
        max_text: int | None = None,
        wait: Literal["finished", "queued"] = "finished",
        tools: bool | Sequence[str] | None = None,
        reuse_calls: Cell | str | None = None,
        on_approval: OnApproval | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Cell:
        """Run a cell and wait for its end.

        The wait survives a lost connection. The request has the cell's id, so that the client can repeat it and the
        cell runs once. Cancelling ends the wait. The cell continues to run (``interrupt`` stops it).

        Args:
            code: source text as in a Jupyter cell, with magics and top-level ``await``.
            cell: an id of your choice. A repeated id returns the same cell and runs nothing.
            timeout: maximum wall time in seconds, after which the cell is interrupted.
            silent: leave the cell out of history and execution count.
            on_error: ``stop`` cancels the queued cells if this one fails.
            on_disconnect: ``interrupt`` interrupts the cell when its last client disconnects.
            metadata: stored with the cell in the log and the notebook.
            checkpoint: ``every`` makes a checkpoint after this cell, before any later one. Default: the session's mode.
            changes: the cell is a model's: ``cell_finished`` has the names of variables and files that the cell made,
                changed or removed, and a traceback has the short form only.
            max_text: most characters of ``text``, which keeps its head and its tail. The log has all of it
                (``output``).
            wait: ``queued`` returns when the server has accepted the cell.
            tools: False forbids the cell to call functions of clients. Names allow these only. ``*`` is any text.
            reuse_calls: an earlier cell. A call that it made, too, with the same arguments, gets the recorded result
                and is not carried out again: for a repetition after the kernel has died.
            on_approval: called with each call of the cell that waits for approval. It returns True to approve it,
                False or a reason to deny it, and None to leave the decision to another client.
            trace: ``traceparent`` and ``tracestate`` of the span that asks for the cell, such as the headers of a
                request. The cell and its processes get them. Default: OpenTelemetry's current span.

        Raises:
            KernelsvcError: the server refused the cell. A failed cell does not raise: see ``Cell.raise_for_error``.
        """
        request = _cell_params(code, cell, timeout, silent, on_error, on_disconnect, metadata, checkpoint, trace)
        request |= without_none(changes=changes or None, max_text=max_text)
        if tools is not None:
            request["tools"] = tools if isinstance(tools, bool) else [*tools]
        if reuse_calls is not None:
            request["reuse_calls"] = reuse_calls.id if isinstance(reuse_calls, Cell) else reuse_calls
        if on_approval is not None:
            return await self._run_with_approvals(request, on_approval)
        return self._rpc.cell(await self._call("execute", wait=wait, **request))

    async def _run_with_approvals(self, request: dict[str, Any], on_approval: OnApproval) -> Cell:
        deciding: list[asyncio.Task[None]] = []
        async with AsyncStream(self._rpc, request) as stream:
            async for event in stream:
                if isinstance(event, ToolCalled) and event.approval == "pending":
                    deciding.append(asyncio.create_task((await self.call(event.call)).ask(on_approval)))
            await asyncio.gather(*deciding)
            return await stream.cell()

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
        checkpoint: Literal["auto", "every"] | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> AsyncStream:
        """Run a cell and iterate over its events as they happen. The last one is ``cell_finished``.

        The first iteration sends the cell. Each event arrives exactly once, across reconnects too.

        The arguments are those of ``run``. With ``allow_stdin`` the cell's ``input()`` sends an ``input_requested``
        event, which the method ``input`` answers. Without it ``input()`` fails.
        """
        request = _cell_params(code, cell, timeout, silent, on_error, on_disconnect, metadata, checkpoint, trace)
        return AsyncStream(self._rpc, {**request, "allow_stdin": allow_stdin})

    async def batch(
        self,
        cells: Sequence[str | Mapping[str, Any]],
        *,
        on_error: Literal["stop", "continue"] = "stop",
        trace: Mapping[str, str] | None = None,
    ) -> list[Cell]:
        """Run several cells in one request, and wait for their ends.

        Args:
            cells: source texts, or parameters of the API's ``session.execute``.
            on_error: ``stop`` cancels the cells after one that fails.
            trace: of all cells, as in ``run``.
        """
        requests = [{"code": cell} if isinstance(cell, str) else dict(cell) for cell in cells]
        # With their own ids the cells run once, even if the client sends the batch twice.
        for request in requests:
            request.setdefault("cell", new_id("cell"))
        answer = await self._call("batch", cells=requests, on_error=on_error, _meta=request_meta(trace))
        return [self._rpc.cell(item) for item in answer]

    async def cell(self, id: str) -> Cell:
        """Return the present state of a cell."""
        return self._rpc.cell(await self._call("cell", cell=id))

    async def view(
        self,
        cell: Cell | str | int | None = None,
        *,
        budget: int | None = None,
        from_line: int | None = None,
        lines: int | None = None,
        find: str | None = None,
        picture: int | None = None,
        after_line: int | None = None,
    ) -> CellView:
        """Read a cell as a language model does: text within a budget of tokens, and pictures.

        Args:
            cell: a cell, its id, or its number from 1. None is the last one.
            budget: about how many tokens the text may have, 200 to 20,000. None is 3,000.
            from_line: read the whole output from this line on, instead of the view.
            lines: most lines to read.
            find: read the lines that match this pattern.
            picture: read the picture with this number.
            after_line: only what comes after this line, ``next_line`` of an earlier view.
        """
        chosen = cell.id if isinstance(cell, Cell) else None if cell is None else str(cell)
        part = {"from_line": from_line, "lines": lines, "find": find, "picture": picture, "after_line": after_line}
        return read(await self._call("view", cell=chosen, budget=budget, **part), CellView)

    async def cells(self) -> list[Cell]:
        """Return all cells of the session, in order."""
        found: list[Cell] = []
        offset: int | None = 0
        while offset is not None:
            answer = await self._call("cells", limit=_PAGE, offset=offset)
            found += [self._rpc.cell(item) for item in answer["cells"]]
            offset = answer["next_offset"]
        return found

    async def output(
        self, cell: str, *, name: Literal["stdout", "stderr"] = "stdout", offset: int = 0, limit: int = 1 << 20
    ) -> dict[str, Any]:
        """Read a cell's output from the log, also beyond ``output_bytes``: ``{text, next_offset, total, ...}``.

        Args:
            cell: the cell's id.
            name: the stream.
            offset: position to start at, in characters.
            limit: maximum number of characters.
        """
        answer = await self._call("output", cell=cell, name=name, offset=offset, limit=limit)
        return read(answer, dict[str, Any])

    def events(self, after: int = 0, *, follow: bool = True) -> AsyncEvents:
        """Iterate over the session's events after a position: first the logged ones, then live ones.

        Args:
            after: ``seq`` of the last event that the caller has already.
            follow: wait for live events, until the session is closed. False ends with the last logged event.
        """
        return AsyncEvents(self._rpc, after) if follow else AsyncPages(self._rpc, self._rest, after)

    async def input(self, cell: str, text: str) -> None:
        """Answer a cell that waits in ``input()``."""
        await self._call("input", cell=cell, text=text)

    async def interrupt(self) -> SessionInfo:
        """Interrupt the running cell, as Ctrl-C would."""
        return await self._described("interrupt")

    async def hold(self, *, seconds: float = 600.0, then: Literal["refuse", "approve"] = "refuse") -> SessionInfo:
        """Take over: cells of every client wait for ``decide``, also those that are queued. ``info.hold`` lists them.

        Args:
            seconds: time that each cell waits.
            then: what happens to a cell that is still undecided by then.

        Raises:
            Forbidden: the token lacks the scope ``approve``.
        """
        return read(await self._call("hold", mode="ask", seconds=seconds, then=then), SessionInfo)

    async def let_go(self) -> SessionInfo:
        """End ``hold``: the cells that wait run."""
        return read(await self._call("hold", mode="off"), SessionInfo)

    async def decide(
        self, *cells: str, decision: Literal["approve", "refuse"], reason: str | None = None
    ) -> list[Cell]:
        """Approve or refuse held cells, all or none. A refused one ends as ``cancelled``, with the reason.

        Raises:
            Conflict: one of them is not held.
            Forbidden: the token lacks the scope ``approve``.
        """
        answer = await self._call("decide_cells", cells=list(cells), decision=decision, reason=reason)
        return [self._rpc.cell(each) for each in answer]

    async def restart(self) -> SessionInfo:
        """Start a new kernel with empty variables. The log continues."""
        return await self._described("restart")

    async def complete(self, code: str, cursor_pos: int | None = None) -> dict[str, Any]:
        """Complete code: Jupyter's ``complete_reply``, ``{matches, cursor_start, cursor_end, ...}``."""
        return read(await self._call("complete", code=code, cursor_pos=cursor_pos), dict[str, Any])

    async def inspect(self, code: str, cursor_pos: int | None = None, detail_level: int = 0) -> dict[str, Any]:
        """Inspect the object at the cursor: Jupyter's ``inspect_reply``, ``{found, data, metadata}``."""
        answer = await self._call("inspect", code=code, cursor_pos=cursor_pos, detail_level=detail_level)
        return read(answer, dict[str, Any])

    async def variables(self) -> list[Variable]:
        """Return the variables that the session's cells have defined."""
        return read(await self._call("variables"), list[Variable])

    async def value(
        self, name: str, *, format: ValueFormat = "best", columns: Sequence[str] | None = None, rows: int | None = None
    ) -> Any:
        """Return a variable: a pandas ``DataFrame`` for a table, and lists, dictionaries, texts or numbers for others.

        A large table is fetched in parts. Safe to cancel.

        Args:
            name: of the variable.
            format: how the data travel. "best" is arrow if the session has pyarrow, else csv.
            columns: of a table. Default: all.
            rows: how many from the start. Default: all.

        Raises:
            NotFound: there is no such variable or column.
            NotSupported: the data are arrow's, and pyarrow or pandas is missing here.
        """
        parts: list[ValueData] = []
        start: int | None = 0
        while start is not None:
            left = None if rows is None else rows - start
            asked = {"name": name, "format": format, "columns": columns, "rows": left, "from_row": start}
            parts.append(read(await self._call("value", **asked), ValueData))
            start = parts[-1].next_row
            format = parts[-1].format
        return tables.joined(parts)

    # --- functions that code may call -------------------------------------------------

    async def offer(self, /, *functions: Callable[..., Any] | OfferedFunction, **options: Any) -> None:
        """Let the session's code call functions of this program, as ``tools.NAME(...)``.

        Args:
            functions: plain or async functions. Their annotations are the schema of the arguments.
            options: see ``kernelsvc.client.offered.offered``: ``name``, ``parameters`` (a JSON schema), ``model`` (a
                pydantic model), ``approval``, ``timeout``, ``redact``, ``effects``, ``max_calls_per_cell``, …

        Raises:
            BadRequest: an offer is not valid, or two names are the same in code.
        """
        made = [each if isinstance(each, OfferedFunction) else offered(each, **options) for each in functions]
        await provider_of(self._rpc.connection, self._rest).offer(made, self.id)

    def tool(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Offer the decorated function: ``@session.tool`` or ``@session.tool(approval="always")``. See ``offer``.

        The offer is sent in the background. The next request of this session waits until the server has accepted it.
        """
        if function is None:
            return partial(self.tool, **options)
        provider_of(self._rpc.connection, self._rest).start_offer([offered(function, **options)], self.id)
        return function

    async def withdraw(self, *names: str) -> None:
        """Withdraw functions that this program offers to the session. Without names: all."""
        await provider_of(self._rpc.connection, self._rest).withdraw(names or None, self.id)

    async def tools(self, search: str | None = None, *, full: bool = False) -> list[dict[str, Any]]:
        """Return the functions that the session's code may call."""
        detail = "full" if full else "brief"
        answer = await self._call("tools", search=search, detail=detail, limit=_PAGE)
        return read(answer["tools"], list[dict[str, Any]])

    async def calls(
        self, *, state: Literal["pending", "running", "ended"] | None = None, cell: str | None = None
    ) -> list[AsyncCall]:
        """Return calls of the session's code, oldest first, without their results.

        Args:
            state: ``pending`` calls wait for ``approve`` or ``deny``.
            cell: only calls of this cell.
        """
        found: list[AsyncCall] = []
        offset: int | None = 0
        while offset is not None:
            answer = await self._call("calls", state=state, cell=cell, limit=_PAGE, offset=offset)
            infos = read(answer["calls"], list[ToolCallInfo])
            found += [AsyncCall(self._rpc.connection, info) for info in infos]
            offset = answer["next_offset"]
        return found

    async def call(self, id: str) -> AsyncCall:
        """Return a call with its result."""
        answer = await self._call("call", call=id)
        return AsyncCall(self._rpc.connection, read(answer, ToolCallInfo))

    # --- programs ------------------------------------------------------------------------

    async def command(
        self,
        command: str | Sequence[str],
        *,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> CommandResult:
        """Run a program in the session's sandbox, and wait for its end.

        Cancelling ends the wait. The program then waits until its output is read: keep it with ``start_program`` to
        end it with a signal.

        Args:
            command: a line for the shell, or the program and its arguments.
            input: its standard input. None is an empty one.
            env: environment variables, added to the session's.
            cwd: the directory to start in. Default: the session's.

        Raises:
            BadRequest: there is no such program or directory.
        """
        program = await self.start_program(command, env=env, cwd=cwd, stdin=input is not None)
        return await run_command(program, input)

    async def start_program(
        self,
        command: str | Sequence[str],
        *,
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bool = False,
        terminal: tuple[int, int] | None = None,
        background: bool = False,
    ) -> AsyncProgram:
        """Start a program in the session's sandbox. It ends with the session.

        Args:
            command: a line for the shell, or the program and its arguments.
            program: an id of your choice. A repeated id returns the same program and starts nothing.
            env: environment variables, added to the session's.
            cwd: the directory to start in. Default: the session's.
            stdin: whether it has a standard input. Otherwise it reads an empty one.
            terminal: columns and rows of a terminal for it. Without one it gets pipes.
            background: drop the oldest unread output, instead of making the program wait.

        Raises:
            BadRequest: there is no such program or directory.
            QuotaExceeded: too many programs of this session run.
        """
        return await start_program(
            self._rpc, command, program=program, env=env, cwd=cwd, stdin=stdin, terminal=terminal, background=background
        )

    async def programs(self) -> list[AsyncProgram]:
        """Return the programs that run or have ended recently. Iterating over one begins with its first output."""
        answer = await self._call("programs")
        return [AsyncProgram(self._rpc, info) for info in read(answer, list[ProgramView])]

    # --- time travel --------------------------------------------------------------------

    async def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Save the present state, for ``rollback`` or ``branch``."""
        return read(await self._call("checkpoint", name=name), Checkpoint)

    async def checkpoints(self) -> list[Checkpoint]:
        """Return the session's checkpoints."""
        return read(await self._call("checkpoints"), list[Checkpoint])

    async def drop_checkpoint(self, checkpoint: str) -> None:
        """Remove a checkpoint and free its memory."""
        await self._call("drop_checkpoint", checkpoint=checkpoint)

    async def rollback(self, to: str | None = None, *, replay: bool = True) -> SessionInfo:
        """Restore the variables to an earlier state. The log and the notebook keep the undone cells, and mark them.

        Args:
            to: a checkpoint's name or id, or a cell's id for the state before it. Default: before the last cell.
            replay: if the state has no checkpoint, return to the newest one before it and run the cells in between
                again, with their effects outside of the kernel. Otherwise such a state is ``not_found``.
        """
        return await self._described("rollback", to=to, **({} if replay else {"replay": False}))

    async def branch(
        self,
        *,
        at: str | None = None,
        count: int = 1,
        labels: Mapping[str, str] | None = None,
        limits: Mapping[str, Any] | None = None,
        force: bool = False,
        isolate: bool = False,
        tools: Mapping[str, Sequence[str]] | None = None,
    ) -> list[AsyncSession]:
        """Create sessions that start with this one's live state, and are independent from then on.

        Args:
            at: a checkpoint to start from, instead of the present state.
            count: number of branches.
            labels: labels of the new sessions.
            limits: limits of each new session, at most those of this session.
            force: branch even if some objects will be lost.
            isolate: give each new session a sandbox of its own. It gets the variables that pickle can copy, and
                ``details.parent["warnings"]`` names the others.
            tools: ``allow`` and ``deny`` for functions of clients, as in ``create_session``. Nothing that this session
                may not call becomes possible.

        Raises:
            CannotFork: the session has objects that a fork would break. ``details["reasons"]`` lists them.
        """
        answer = await self._call(
            "branch",
            at=at,
            count=count,
            labels=dict(labels or {}) or None,
            limits=dict(limits or {}) or None,
            force=True if force else None,
            isolate=True if isolate else None,
            tools=None if tools is None else {name: [*names] for name, names in tools.items()},
        )
        found = read(answer, list[SessionInfo])
        return [AsyncSession(self._rpc.connection, self._rest, info, keep=False) for info in found]

    async def update_network(self, network: Mapping[str, Any] | str | None = None) -> SessionInfo:
        """Replace the rules of the session's network. Open connections that the new rules refuse end.

        Args:
            network: the rules, such as ``{"allow": ["pypi.org"]}``, or "none". None gives the server's rules.

        Raises:
            LimitTooHigh: a rule is more than the server allows.
            BadRequest, Conflict: this session can't have such rules. The message says why.
        """
        return await self._described("network", network=network)

    async def share_port(self, port: int, *, public: bool = False, seconds: float = 3600.0) -> str:
        """Return an address at which a browser reaches a server that runs in the session, without a token.

        Args:
            port: the port on which the server listens in the session.
            public: everybody may use the port, until ``unshare_port``. Otherwise the address is signed and secret.
            seconds: how long a signed address is valid.
        """
        found = read(await self._call("share_port", port=port, public=public, seconds=seconds), PortAddress)
        return found.url or f"{self._rest.address.base}{found.path}"

    async def unshare_port(self, port: int) -> None:
        """End every address of a port, and the connections that use one."""
        await self._call("unshare_port", port=port)

    async def hibernate(self) -> SessionInfo:
        """Save the variables to disk and free the memory. The next cell resumes the session."""
        return await self._described("hibernate")

    async def close(self) -> SessionInfo:
        """End the session. Its log, notebook and files stay readable."""
        return await self._described("close")

    # --- files and records -------------------------------------------------------------

    @property
    def _path(self) -> str:
        return f"/v1/sessions/{quoted(self.id)}"

    async def upload(self, source: str | os.PathLike[str] | bytes, name: str | None = None) -> str:
        """Upload a file to the session's working directory.

        Args:
            source: a path of this machine, or the content as bytes.
            name: its path in the working directory. Required for bytes. The default is the name of the source.

        Returns:
            the file's path in the working directory.
        """
        body, size, name = upload_body(source, name)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        await self._rest.raw("PUT", f"{self._path}/files/{quoted(name)}", body, headers=headers, repeat=True)
        return name

    async def download(self, name: str) -> bytes:
        """Return a file's content. For a large file use ``save``."""
        return await self._rest.raw("GET", f"{self._path}/files/{quoted(name)}", headers=CONTENT)

    async def save(self, name: str, to: str | os.PathLike[str] = ".") -> Path:
        """Download a file to this machine, atomically. If ``to`` is a directory, the file keeps its name."""
        target = target_of(Path(to), name)
        await save(self._rest, f"{self._path}/files/{quoted(name)}", target)
        return target

    async def delete(self, name: str) -> None:
        """Remove a file from the session's working directory."""
        await self._rest.raw("DELETE", f"{self._path}/files/{quoted(name)}", repeat=True)

    async def files(self, path: str = "", *, recursive: bool = False) -> list[FileInfo]:
        """List a directory of the session's working directory. Returns at most 10,000 files."""
        where = f"{self._path}/files/{quoted(path)}"
        options = {"limit": 10_000, "recursive": "true" if recursive else None}
        return file_list(await self._rest.json("GET", query(where, **options)))

    async def notebook(self, format: Format = "ipynb") -> bytes:
        """Return the session as a notebook, also while it runs and after it is closed."""
        return await self._rest.raw("GET", query(f"{self._path}/notebook", format=format))

    async def journal(self) -> bytes:
        """Return the log, one JSON object a line, for ``kernelsvc verify``."""
        return await self._rest.raw("GET", f"{self._path}/journal")


def _cell_params(
    code: str,
    cell: str | None,
    timeout: float | None,
    silent: bool,
    on_error: str,
    on_disconnect: str,
    metadata: Mapping[str, Any] | None,
    checkpoint: str | None,
    trace: Mapping[str, str] | None,
) -> dict[str, Any]:
    optional = without_none(
        timeout_seconds=timeout,
        metadata=dict(metadata or {}) or None,
        checkpoint=checkpoint,
        _meta=request_meta(trace),
    )
    return {
        "code": code,
        "cell": cell or new_id("cell"),
        "silent": silent,
        "on_error": on_error,
        "on_disconnect": on_disconnect,
        **optional,
    }
