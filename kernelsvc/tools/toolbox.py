"""Run tool calls."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import mimetypes
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from kernelsvc.errors import BadRequest, Conflict, KernelsvcError, NotFound, TooLarge
from kernelsvc.model.objects import (
    CellInfo,
    CellState,
    CellView,
    Checkpoint,
    SessionInfo,
    SessionState,
    ToolCallInfo,
    Variable,
)
from kernelsvc.model.storage.name_rules import in_words
from kernelsvc.model.view.line_search import matching_lines
from kernelsvc.protocol.method_params import CallPage, Output, SessionPage
from kernelsvc.tools import definitions
from kernelsvc.tools.backend import ToolBackend
from kernelsvc.tools.definitions import OLD_TOOLS, TOOLS
from kernelsvc.tools.result import (
    ImageContent,
    ResourceLink,
    ToolResult,
    cell_result,
    error_result,
    shortened,
    tool_result,
    view_pictures,
)
from kernelsvc.tools.session_resolver import CallerState, SessionResolver

#: Progress callback, called about once a second: seconds since the call, and the last line of the cell's output.
Report = Callable[[float, str], Awaitable[None]]

#: Called with a call that waits for approval. True approves it, False denies it, None leaves it waiting.
Decide = Callable[[ToolCallInfo], Awaitable[bool | None]]

TICK_SECONDS = 1.0
#: Maximum bytes of a script in a result. A larger one is only linked.
MAX_NOTEBOOK = 100_000
#: Maximum bytes of a file in one call.
MAX_UPLOAD = 16 * 1024 * 1024
MAX_PROGRESS_TEXT = 160


class RunCallbacks(Struct, frozen=True):
    """Who is called while a cell runs. See ``Toolbox.call``."""

    report: Report | None = None
    decide: Decide | None = None


class Toolbox:
    """The tools of one principal.

    Args:
        backend: access to the sessions.
        caller: state from earlier calls of this caller. Default: none.
    """

    def __init__(self, backend: ToolBackend, caller: CallerState | None = None) -> None:
        self._backend = backend
        self._sessions = SessionResolver(backend, caller or CallerState("default"))
        self._handlers: dict[str, Callable[[Any, RunCallbacks], Awaitable[ToolResult]]] = {
            "run_code": self._run_code,
            "wait": self._wait,
            "undo": self._undo,
            "write_file": self._upload_file,
            "read_file": self._read_file,
            "keep": self._checkpoint,
            "fork": self._fork,
            "sessions": self._manage_sessions,
            "wait_for_cell": self._wait_for_cell,
            "read_output": self._read_output,
            "interrupt": self._interrupt,
            "restart": self._restart,
            "variables": self._variables,
            "checkpoint": self._checkpoint,
            "rollback": self._rollback,
            "branch": self._branch,
            "upload_file": self._upload_file,
            "download_file": self._download_file,
            "list_files": self._list_files,
            "export_notebook": self._export_notebook,
            "list_sessions": self._list_sessions,
            "close_session": self._close_session,
        }

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        report: Report | None = None,
        decide: Decide | None = None,
    ) -> ToolResult:
        """Run one call. Safe to cancel: an accepted cell continues, and wait returns its result.

        Args:
            name: name of the tool.
            arguments: arguments from the model.
            report: progress callback while a cell runs.
            decide: called with calls of a cell that wait for approval, once for each call. Its time does not count.

        Returns:
            the result. An error of the call is a result too, so that the model reads it.

        Raises:
            NotFound: there is no such tool.
        """
        tool = TOOLS.get(name) or OLD_TOOLS.get(name)
        if tool is None:
            raise NotFound(f"There is no tool {name!r}. The tools are {', '.join(TOOLS)}.")
        try:
            return await self._handlers[name](_decoded(tool, arguments or {}), RunCallbacks(report, decide))
        except KernelsvcError as error:
            return error_result(error)

    # --- cells -------------------------------------------------------------------------------

    async def _run_code(self, args: definitions.RunCode, callbacks: RunCallbacks) -> ToolResult:
        session, note = await self._sessions.open(args.session)
        # An id of its own, so that the wait can send the same request again.
        cell = f"c_{secrets.token_hex(8)}"
        params: dict[str, Any] = {"session": session.id, "cell": cell, "code": args.code, "changes": True}
        if (seconds := args.seconds or args.timeout_seconds) is not None:
            params["timeout_seconds"] = seconds
        await self._backend.call("session.execute", {**params, "wait": "queued"}, CellInfo)
        found = await self._wait_until_finished(params, args.wait_seconds, callbacks)
        budget = args.budget if args.max_text is None else _tokens(args.max_text)
        return await self._cell_result(found, budget, note)

    async def _cell_result(self, cell: CellInfo, budget: int, note: str | None = None) -> ToolResult:
        """Return what the caller has not read of a cell."""
        params = {"session": cell.session, "cell": cell.id, "budget": budget}
        view = await self._backend.call(
            "session.view", {**params, "after_line": self._sessions.lines_read(cell.id)}, CellView
        )
        self._sessions.note_read(cell.id, None if view.reason is not None else view.next_line)
        if cell.waits_for == "approval":
            tools = ", ".join(dict.fromkeys(call.tool for call in await self._pending(cell)))
            note = "\n".join(filter(None, [note, f"The cell waits until a person approves its call of {tools}."]))
        return cell_result(cell, view, note)

    async def _wait(self, args: definitions.WaitArguments, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        chosen = str(args.cell) if args.cell is not None else None
        cell = await self._cell(session.id, await self._id_of(session.id, chosen))
        if cell.state is not CellState.FINISHED:
            params = {"session": session.id, "cell": cell.id, "code": cell.code}
            cell = await self._wait_until_finished(params, args.seconds, callbacks)
        return await self._cell_result(cell, args.budget)

    async def _wait_for_cell(self, args: definitions.WaitForCell, callbacks: RunCallbacks) -> ToolResult:
        budget = definitions.DEFAULT_BUDGET if args.max_text is None else _tokens(args.max_text)
        new = definitions.WaitArguments(session=args.session, cell=args.cell, seconds=args.wait_seconds, budget=budget)
        return await self._wait(new, callbacks)

    async def _id_of(self, session: str, cell: str | None) -> str:
        """Return the id of a cell that is named by number or id. None is the last one."""
        params: dict[str, Any] = {"session": session, "budget": 200, "after_line": 2**53}
        if cell is not None:
            params["cell"] = cell
        return (await self._backend.call("session.view", params, CellView)).cell

    async def _wait_until_finished(self, params: dict[str, Any], seconds: float, callbacks: RunCallbacks) -> CellInfo:
        """Wait for the end of a cell, at most ``seconds``, and return its state.

        A repeated ``session.execute`` with the cell's id runs nothing, and waits for the existing cell.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked: set[str] = set()
        asking = asyncio.create_task(self._backend.call("session.execute", {**params, "wait": "finished"}, CellInfo))
        try:
            while (left := began + seconds - loop.time()) > 0:
                looks = callbacks.report is not None or callbacks.decide is not None
                await asyncio.wait({asking}, timeout=min(left, TICK_SECONDS) if looks else left)
                if asking.done():
                    return asking.result()
                if not looks:
                    continue
                cell = await self._cell(params["session"], params["cell"])
                if callbacks.report is not None:
                    await callbacks.report(loop.time() - began, _last_line(cell.text))
                if callbacks.decide is not None and cell.waits_for == "approval":
                    asked_at = loop.time()
                    await self._decide(cell, callbacks.decide, asked)
                    began += loop.time() - asked_at
            return await self._cell(params["session"], params["cell"])
        finally:
            # Ends only the wait. The cell continues.
            asking.cancel()

    async def _decide(self, cell: CellInfo, decide: Decide, asked: set[str]) -> None:
        """Ask about the calls of a cell that wait for approval and were not asked about before."""
        for call in await self._pending(cell):
            if call.call not in asked:
                asked.add(call.call)
                if (decision := await decide(call)) is not None:
                    await self.decide(cell.session, call.call, approve=decision)

    async def decide(self, session: str, call: str, *, approve: bool) -> None:
        """Approve or deny a call. One that has ended meanwhile, or that the caller may not decide about, stays."""
        params = {"session": session, "calls": [call], "decision": "approve" if approve else "deny"}
        with contextlib.suppress(KernelsvcError):
            await self._backend.call("session.decide", params, list[ToolCallInfo])

    async def _pending(self, cell: CellInfo) -> list[ToolCallInfo]:
        params = {"session": cell.session, "cell": cell.id, "state": "pending"}
        return (await self._backend.call("session.calls", params, CallPage)).calls

    async def _cell(self, session: str, cell: str) -> CellInfo:
        return await self._backend.call("session.cell", {"session": session, "cell": cell}, CellInfo)

    async def _read_output(self, args: definitions.ReadOutput, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        chosen = None if args.cell is None else str(args.cell)
        if args.name is not None or args.offset is not None:
            cell = await self._id_of(session.id, chosen)
            return await self._read_stream(session.id, cell, args.name or "stdout", args.offset or 0, args.limit)
        asked = {"from_line": args.from_line, "lines": args.lines, "find": args.find, "picture": args.picture}
        params = {name: value for name, value in asked.items() if value is not None}
        if args.lines is not None:
            params.setdefault("from_line", 1)
        if chosen is not None:
            params["cell"] = chosen
        view = await self._backend.call(
            "session.view", {"session": session.id, "budget": args.budget, **params}, CellView
        )
        result = definitions.OutputResult(session=session.id, cell=view.cell, text=view.text, total=view.lines)
        return tool_result(result, view.text, *view_pictures(view)[0])

    async def _read_stream(self, session: str, cell: str, name: str, offset: int, limit: int) -> ToolResult:
        """Read one stream in characters, as earlier versions did."""
        params = {"session": session, "cell": cell, "name": name, "offset": offset, "limit": limit}
        piece = await self._backend.call("session.output", params, Output)
        result = definitions.OutputResult(
            session=session, cell=cell, text=piece.text, total=piece.total, next_offset=piece.next_offset
        )
        more = f"\n[{piece.total} characters in total. Continue with offset={piece.next_offset}]"
        shown = piece.text + more if piece.next_offset is not None else piece.text
        return tool_result(result, shown or "[no output]")

    async def _undo(self, args: definitions.Undo, callbacks: RunCallbacks) -> ToolResult:
        to = args.to
        if to is None and args.cell is not None:
            session = await self._sessions.find(args.session)
            to = await self._id_of(session.id, str(args.cell))
        return await self._rollback(definitions.Rollback(session=args.session, to=to), callbacks)

    async def _fork(self, args: definitions.Fork, callbacks: RunCallbacks) -> ToolResult:
        return await self._branch(
            definitions.Branch(session=args.session, count=args.count, at=args.from_kept), callbacks
        )

    async def _manage_sessions(self, args: definitions.Sessions, callbacks: RunCallbacks) -> ToolResult:
        if args.restart is not None:
            found = await self._restart(definitions.InSession(session=args.restart), callbacks)
            return msgspec.structs.replace(found, facts={"sessions": [found.facts]})
        if args.close is not None:
            found = await self._close_session(definitions.CloseSession(session=args.close), callbacks)
            return msgspec.structs.replace(found, facts={"sessions": [found.facts]})
        return await self._list_sessions(definitions.ListSessions(), callbacks)

    async def _directory(self, args: definitions.ReadFile) -> ToolResult:
        found = await self._list_files(definitions.ListFiles(session=args.session, path=args.path), RunCallbacks())
        return msgspec.structs.replace(found, facts={**(found.facts or {}), "path": args.path, "size": 0})

    async def _read_file(self, args: definitions.ReadFile, callbacks: RunCallbacks) -> ToolResult:
        if not args.path.strip("./"):
            return await self._directory(args)
        old = definitions.DownloadFile(session=args.session, path=args.path)
        if args.from_line is None and args.lines is None and args.find is None:
            try:
                return await self._download_file(old, callbacks)
            except (BadRequest, Conflict):
                # It may be a directory.
                return await self._directory(args)
        session = await self._sessions.find(args.session)
        piece = await self._backend.read_file(session.id, args.path, 0, MAX_UPLOAD)
        lines = piece.data.decode("utf-8", "replace").split("\n")
        result = definitions.FileResult(session=session.id, path=args.path, size=piece.size)
        if args.find is not None:
            found = [f"{each[0]}: {each[1]}" for each in matching_lines(lines, args.find) if each is not None]
        else:
            start = (args.from_line or 1) - 1
            found = lines[start : start + (args.lines or len(lines))]
        text, _ = shortened("\n".join(found), definitions.DEFAULT_TEXT, "from_line and lines read the rest")
        return tool_result(result, f"{text}\n[{len(found)} of {len(lines)} lines]")

    # --- sessions ----------------------------------------------------------------------------

    async def _interrupt(self, args: definitions.InSession, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        after = await self._backend.call("session.interrupt", {"session": session.id}, SessionInfo)
        return _session_result(after, "Interrupted. wait returns the cell's result.")

    async def _restart(self, args: definitions.InSession, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        after = await self._backend.call("session.restart", {"session": session.id}, SessionInfo)
        return _session_result(after, "Restarted without variables. The files and the notebook are kept.")

    async def _variables(self, args: definitions.InSession, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        found = await self._backend.call("session.variables", {"session": session.id}, list[Variable])
        shown = [
            definitions.VariableShown(name=each.name, type=each.type, summary=each.summary, size_bytes=each.size_bytes)
            for each in found
        ]
        lines = [f"{each.name}: {each.type} = {each.summary}" for each in found]
        text, _ = shortened(
            "\n".join(lines) or "No variables yet.", definitions.DEFAULT_TEXT, "print single ones with run_code"
        )
        return tool_result(definitions.VariablesResult(session=session.id, variables=shown), text)

    async def _checkpoint(self, args: definitions.MakeCheckpoint, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        await self._backend.call("session.checkpoint", {"session": session.id, "name": args.name}, Checkpoint)
        after = await self._backend.call("session.get", {"session": session.id}, SessionInfo)
        return _session_result(after, f"Saved as {args.name!r}. undo with to={args.name!r} restores it.")

    async def _rollback(self, args: definitions.Rollback, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        params = {"session": session.id, "to": args.to, "replay": args.replay}
        after = await self._backend.call("session.rollback", params, SessionInfo)
        moment = f"of {args.to!r}" if args.to else "from before the last cell"
        return _session_result(after, f"Restored the variables {moment}. The files are unchanged.")

    async def _branch(self, args: definitions.Branch, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        params: dict[str, Any] = {"session": session.id, "count": args.count}
        if args.at is not None:
            params["at"] = args.at
        made = await self._backend.call("session.branch", params, list[SessionInfo])
        lines = "\n".join(each.id for each in made)
        text = (
            f"Branches of {session.id}, each with its variables and files. Use run_code with one of these ids:\n{lines}"
        )
        return tool_result(definitions.SessionsResult(sessions=[_shown(each) for each in made]), text)

    async def _list_sessions(self, args: definitions.ListSessions, callbacks: RunCallbacks) -> ToolResult:
        page = await self._backend.call("session.list", {"limit": 100}, SessionPage)
        found = [each for each in page.sessions if args.closed or each.state is not SessionState.CLOSED]
        lines = [f"{each.id}  {each.state}  {each.name or ''}  {each.execution_count} cells" for each in found]
        shown = definitions.SessionsResult(sessions=[_shown(each) for each in found])
        return tool_result(shown, "\n".join(lines) or "No session yet. run_code creates one.")

    async def _close_session(self, args: definitions.CloseSession, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        after = await self._backend.call("session.close", {"session": session.id}, SessionInfo)
        return _session_result(after, "Closed. export_notebook and read_file still work.")

    # --- files and records ---------------------------------------------------------------------

    async def _upload_file(self, args: definitions.UploadFile, callbacks: RunCallbacks) -> ToolResult:
        data = _content(args)
        session, note = await self._sessions.open(args.session)
        await self._backend.put_file(session.id, args.path, data)
        result = definitions.FileResult(session=session.id, path=args.path, size=len(data), note=note)
        return tool_result(result, f"Wrote {len(data)} bytes to {args.path} in session {session.id}.")

    async def _download_file(self, args: definitions.DownloadFile, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        limit = definitions.MAX_PIECE * 4 if _is_picture(args.path) and args.offset == 0 else args.limit
        piece = await self._backend.read_file(session.id, args.path, args.offset, limit)
        end = args.offset + len(piece.data)
        result = definitions.FileResult(
            session=session.id, path=args.path, size=piece.size, uri=file_uri(session.id, args.path),
            next_offset=end if end < piece.size else None,
        )  # fmt: skip
        mime = mimetypes.guess_type(args.path)[0] or ""
        if mime in ("image/png", "image/jpeg", "image/gif", "image/webp") and end == piece.size and args.offset == 0:
            return tool_result(result, f"{args.path}: {piece.size} bytes", ImageContent(mime, piece.data))
        more = f"\n[{piece.size} bytes in total. Continue with offset={end}]" if end < piece.size else ""
        return tool_result(result, _as_text(piece.data) + more)

    async def _list_files(self, args: definitions.ListFiles, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        files, truncated = await self._backend.list_files(session.id, args.path, recursive=args.recursive)
        lines = [f"{each.path}{'/' if each.kind == 'directory' else ''}  {each.size}" for each in files]
        more = ["[there are more files. List a subdirectory]"] if truncated else []
        result = definitions.FilesResult(session=session.id, files=files, truncated=truncated)
        return tool_result(result, "\n".join(lines + more) or "The directory is empty.")

    async def _export_notebook(self, args: definitions.ExportNotebook, callbacks: RunCallbacks) -> ToolResult:
        session = await self._sessions.find(args.session)
        data = await self._backend.notebook(session.id, args.format)
        uri = notebook_uri(session.id, args.format)
        saved_as = args.path or args.save_as
        if saved_as:
            await self._backend.put_file(session.id, saved_as, data)
        path = saved_as or f"notebook.{args.format}"
        result = definitions.FileResult(session=session.id, path=path, size=len(data), uri=uri)
        link = ResourceLink(uri=uri, name=path, mime=MIME[args.format], size=len(data))
        saved = f" and written to {saved_as}" if saved_as else ""
        where = f"The notebook of session {session.id} ({len(data)} bytes) is the resource {uri}{saved}. The user gets "
        how = f"it with 'kernelsvc export {session.id} -o notebook.{args.format}'."
        body = data.decode("utf-8", "replace") if len(data) <= MAX_NOTEBOOK and args.format == "py" else ""
        return tool_result(result, f"{where}{how}" + (f"\n\n{body}" if body else ""), link)


MIME = {"ipynb": "application/x-ipynb+json", "html": "text/html", "py": "text/x-python"}


def notebook_uri(session: str, format: str) -> str:
    """Return the URI of a session's notebook as an MCP resource."""
    return f"kernelsvc://sessions/{session}/notebook.{format}"


def file_uri(session: str, path: str) -> str:
    """Return the URI of a session's file as an MCP resource."""
    return f"kernelsvc://sessions/{session}/files/{path}"


def _decoded(tool: definitions.Tool, arguments: Mapping[str, Any]) -> Any:
    # Models often send null for an optional argument.
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return msgspec.convert(given, tool.arguments, strict=False)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        why = in_words(str(error))
        raise BadRequest(f"The arguments of {tool.name} are not valid: {why}. Correct them and call again.") from None


def _content(args: definitions.UploadFile) -> bytes:
    if (args.text is None) == (args.base64 is None):
        raise BadRequest("Give the content either as 'text' or as 'base64'.")
    if not args.path.strip("/"):
        raise BadRequest("Name the file in 'path', such as 'data.csv'.")
    try:
        data = args.text.encode() if args.text is not None else base64.b64decode(args.base64 or "", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadRequest("The content is not valid base64, or not valid text. Encode it again.") from None
    if len(data) > MAX_UPLOAD:
        raise TooLarge(f"One call can upload at most {MAX_UPLOAD} bytes. Upload the file over HTTP, or in parts.")
    return data


def _tokens(characters: int) -> int:
    """Return a budget of tokens for a limit in characters, as earlier versions had it."""
    return min(20_000, max(200, characters // 4))


def _is_picture(path: str) -> bool:
    return (mimetypes.guess_type(path)[0] or "").startswith("image/")


def _as_text(data: bytes) -> str:
    """Return text as it is, and other data in base64, marked so. A part may end within a UTF-8 character."""
    if b"\0" not in data:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            # A UTF-8 character has at most 4 bytes (RFC 3629, section 3), so that a cut one has up to 3.
            if error.start >= len(data) - 3 and error.reason == "unexpected end of data":
                return data.decode("utf-8", "replace")
    return "[base64] " + base64.b64encode(data).decode()


def _last_line(text: str) -> str:
    lines = text.rstrip().rsplit("\n", 1)
    return lines[-1][-MAX_PROGRESS_TEXT:]


def _shown(session: SessionInfo, note: str | None = None) -> definitions.SessionResult:
    return definitions.SessionResult(
        session=session.id,
        state=str(session.state),
        name=session.name,
        execution_count=session.execution_count,
        created_at=session.created_at,
        checkpoints=[each.name for each in session.checkpoints if each.name],
        note=note,
    )


def _session_result(session: SessionInfo, note: str) -> ToolResult:
    result: Struct = _shown(session, note)
    return tool_result(result, f"{note} [session {session.id} is {session.state}]")
