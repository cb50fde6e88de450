"""Carries tool calls out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import mimetypes
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, TooLarge
from kernelsvc.model.objects import CellInfo, CellState, Checkpoint, SessionInfo, SessionState, Variable
from kernelsvc.protocol.methods import CellPage, Output, SessionPage
from kernelsvc.tools import definitions
from kernelsvc.tools.backend import ToolBackend
from kernelsvc.tools.definitions import TOOLS
from kernelsvc.tools.result import ImageContent, ResourceLink, ToolResult, cell_outcome, outcome, refusal, shortened
from kernelsvc.tools.session_resolver import CallerState, SessionResolver

#: Told every second or so how long a call has waited, in seconds, and what the cell said last.
Report = Callable[[float, str], Awaitable[None]]

TICK_SECONDS = 1.0
#: A notebook in a result, in characters; larger ones are linked.
MAX_NOTEBOOK = 100_000
#: Bytes of a file that one call uploads.
MAX_UPLOAD = 16 * 1024 * 1024
MAX_SAID = 160
_PAGE = 1000


class Toolbox:
    """The tools, over one principal's desk.

    Args:
        desk: how the sessions are reached.
        memory: what this caller's earlier calls remember; a fresh one when None.
    """

    def __init__(self, desk: ToolBackend, memory: CallerState | None = None) -> None:
        self._desk = desk
        self._sessions = SessionResolver(desk, memory or CallerState("default"))
        self._doing: dict[str, Callable[[Any, Report | None], Awaitable[ToolResult]]] = {
            "run_code": self._run_code,
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
        self, name: str, arguments: Mapping[str, Any] | None = None, report: Report | None = None
    ) -> ToolResult:
        """Carry out one call. Safe to cancel: a cell that was accepted goes on, and can be picked up again.

        Args:
            name: the tool.
            arguments: as the model gave them.
            report: told of progress while a cell runs.

        Returns:
            what happened; a refusal is an outcome too, so that the model reads why.

        Raises:
            NotFound: there is no such tool.
        """
        tool = TOOLS.get(name)
        if tool is None:
            raise NotFound(f"There is no tool {name!r}; there are {', '.join(TOOLS)}.")
        try:
            return await self._doing[name](_decoded(tool, arguments or {}), report)
        except KernelsvcError as error:
            return refusal(error)

    # --- cells -------------------------------------------------------------------------------

    async def _run_code(self, asked: definitions.RunCode, report: Report | None) -> ToolResult:
        session, note = await self._sessions.open(asked.session)
        cell = f"c_{secrets.token_hex(8)}"
        params: dict[str, Any] = {"session": session.id, "cell": cell, "code": asked.code}
        if asked.timeout_seconds is not None:
            params["timeout_seconds"] = asked.timeout_seconds
        await self._desk.call("session.execute", {**params, "wait": "queued"}, CellInfo)
        found = await self._ended(params, asked.wait_seconds, report)
        return cell_outcome(found, asked.max_text, note)

    async def _wait_for_cell(self, asked: definitions.WaitForCell, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        cell = await self._cell(session.id, asked.cell) if asked.cell else await self._last_cell(session.id)
        if cell.state is not CellState.FINISHED:
            params = {"session": session.id, "cell": cell.id, "code": cell.code}
            cell = await self._ended(params, asked.wait_seconds, report)
        return cell_outcome(cell, asked.max_text)

    async def _ended(self, params: dict[str, Any], seconds: float, report: Report | None) -> CellInfo:
        """The cell when it has ended, or as it is after ``seconds``.

        Asking for a cell again by its id runs nothing: it waits for the one there is.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        asking = asyncio.create_task(self._desk.call("session.execute", {**params, "wait": "finished"}, CellInfo))
        try:
            while (left := began + seconds - loop.time()) > 0:
                await asyncio.wait({asking}, timeout=min(left, TICK_SECONDS) if report else left)
                if asking.done():
                    return asking.result()
                if report is not None:
                    cell = await self._cell(params["session"], params["cell"])
                    await report(loop.time() - began, _last_line(cell.text))
            return await self._cell(params["session"], params["cell"])
        finally:
            asking.cancel()

    async def _cell(self, session: str, cell: str) -> CellInfo:
        return await self._desk.call("session.cell", {"session": session, "cell": cell}, CellInfo)

    async def _last_cell(self, session: str) -> CellInfo:
        offset: int | None = 0
        last: CellInfo | None = None
        while offset is not None:
            params = {"session": session, "limit": _PAGE, "offset": offset}
            page = await self._desk.call("session.cells", params, CellPage)
            last = page.cells[-1] if page.cells else last
            offset = page.next_offset
        if last is None:
            raise NotFound("No cell has run in this session yet; run_code runs one.")
        return last

    async def _read_output(self, asked: definitions.ReadOutput, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        params = {
            "session": session.id, "cell": asked.cell, "name": asked.name, "offset": asked.offset, "limit": asked.limit,
        }  # fmt: skip
        piece = await self._desk.call("session.output", params, Output)
        result = definitions.OutputResult(
            session=session.id, cell=asked.cell, text=piece.text, total=piece.total, next_offset=piece.next_offset
        )
        more = f"\n[{piece.total} characters in all; go on with offset={piece.next_offset}]"
        return outcome(result, piece.text + (more if piece.next_offset is not None else "") or "[nothing was written]")

    # --- sessions ----------------------------------------------------------------------------

    async def _interrupt(self, asked: definitions.InSession, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        after = await self._desk.call("session.interrupt", {"session": session.id}, SessionInfo)
        return _session_outcome(after, "Interrupted; wait_for_cell shows how the cell ended.")

    async def _restart(self, asked: definitions.InSession, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        after = await self._desk.call("session.restart", {"session": session.id}, SessionInfo)
        return _session_outcome(after, "Restarted: no variables, the files and the notebook are still there.")

    async def _variables(self, asked: definitions.InSession, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        found = await self._desk.call("session.variables", {"session": session.id}, list[Variable])
        shown = [
            definitions.VariableShown(name=each.name, type=each.type, summary=each.summary, size_bytes=each.size_bytes)
            for each in found
        ]
        lines = [f"{each.name}: {each.type} = {each.summary}" for each in found]
        text, _ = shortened(
            "\n".join(lines) or "No variables yet.", definitions.DEFAULT_TEXT, "look at some by run_code"
        )
        return outcome(definitions.VariablesResult(session=session.id, variables=shown), text)

    async def _checkpoint(self, asked: definitions.MakeCheckpoint, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        await self._desk.call("session.checkpoint", {"session": session.id, "name": asked.name}, Checkpoint)
        after = await self._desk.call("session.get", {"session": session.id}, SessionInfo)
        return _session_outcome(after, f"Kept as {asked.name!r}; rollback with to={asked.name!r} goes back to it.")

    async def _rollback(self, asked: definitions.Rollback, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        after = await self._desk.call("session.rollback", {"session": session.id, "to": asked.to}, SessionInfo)
        moment = f"at {asked.to!r}" if asked.to else "before the last cell"
        return _session_outcome(after, f"The variables are those {moment}; files are as they were.")

    async def _branch(self, asked: definitions.Branch, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        params: dict[str, Any] = {"session": session.id, "count": asked.count}
        if asked.at is not None:
            params["at"] = asked.at
        made = await self._desk.call("session.branch", params, list[SessionInfo])
        lines = "\n".join(each.id for each in made)
        text = f"Branches of {session.id}, each with its variables and files; run_code with one's id:\n{lines}"
        return outcome(definitions.SessionsResult(sessions=[_shown(each) for each in made]), text)

    async def _list_sessions(self, asked: definitions.ListSessions, report: Report | None) -> ToolResult:
        page = await self._desk.call("session.list", {"limit": 100}, SessionPage)
        found = [each for each in page.sessions if asked.closed or each.state is not SessionState.CLOSED]
        lines = [f"{each.id}  {each.state}  {each.name or ''}  {each.execution_count} cells" for each in found]
        shown = definitions.SessionsResult(sessions=[_shown(each) for each in found])
        return outcome(shown, "\n".join(lines) or "No session yet; run_code makes one.")

    async def _close_session(self, asked: definitions.CloseSession, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        after = await self._desk.call("session.close", {"session": session.id}, SessionInfo)
        return _session_outcome(after, "Closed; export_notebook and download_file still read its record.")

    # --- files and records ---------------------------------------------------------------------

    async def _upload_file(self, asked: definitions.UploadFile, report: Report | None) -> ToolResult:
        data = _content(asked)
        session, note = await self._sessions.open(asked.session)
        await self._desk.put_file(session.id, asked.path, data)
        result = definitions.FileResult(session=session.id, path=asked.path, size=len(data), note=note)
        return outcome(result, f"Wrote {len(data)} bytes to {asked.path} in session {session.id}.")

    async def _download_file(self, asked: definitions.DownloadFile, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        limit = definitions.MAX_PIECE * 4 if _is_picture(asked.path) and asked.offset == 0 else asked.limit
        piece = await self._desk.read_file(session.id, asked.path, asked.offset, limit)
        end = asked.offset + len(piece.data)
        result = definitions.FileResult(
            session=session.id, path=asked.path, size=piece.size, uri=file_uri(session.id, asked.path),
            next_offset=end if end < piece.size else None,
        )  # fmt: skip
        mime = mimetypes.guess_type(asked.path)[0] or ""
        if mime in ("image/png", "image/jpeg", "image/gif", "image/webp") and end == piece.size and asked.offset == 0:
            return outcome(result, f"{asked.path}: {piece.size} bytes", ImageContent(mime, piece.data))
        more = f"\n[{piece.size} bytes in all; go on with offset={end}]" if end < piece.size else ""
        return outcome(result, _as_text(piece.data) + more)

    async def _list_files(self, asked: definitions.ListFiles, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        files, truncated = await self._desk.list_files(session.id, asked.path, recursive=asked.recursive)
        lines = [f"{each.path}{'/' if each.kind == 'directory' else ''}  {each.size}" for each in files]
        more = ["[there are more; list a directory of it]"] if truncated else []
        result = definitions.FilesResult(session=session.id, files=files, truncated=truncated)
        return outcome(result, "\n".join(lines + more) or "The directory is empty.")

    async def _export_notebook(self, asked: definitions.ExportNotebook, report: Report | None) -> ToolResult:
        session = await self._sessions.find(asked.session)
        data = await self._desk.notebook(session.id, asked.format)
        uri = notebook_uri(session.id, asked.format)
        if asked.save_as:
            await self._desk.put_file(session.id, asked.save_as, data)
        path = asked.save_as or f"notebook.{asked.format}"
        result = definitions.FileResult(session=session.id, path=path, size=len(data), uri=uri)
        link = ResourceLink(uri=uri, name=path, mime=MIME[asked.format], size=len(data))
        saved = f" and written to {asked.save_as}" if asked.save_as else ""
        where = f"The notebook of session {session.id} ({len(data)} bytes) is the resource {uri}{saved}; the user gets "
        how = f"it by 'kernelsvc export {session.id} -o notebook.{asked.format}'."
        body = data.decode("utf-8", "replace") if len(data) <= MAX_NOTEBOOK and asked.format == "py" else ""
        return outcome(result, f"{where}{how}" + (f"\n\n{body}" if body else ""), link)


MIME = {"ipynb": "application/x-ipynb+json", "html": "text/html", "py": "text/x-python"}


def notebook_uri(session: str, format: str) -> str:
    """The resource that a session's notebook is."""
    return f"kernelsvc://sessions/{session}/notebook.{format}"


def file_uri(session: str, path: str) -> str:
    """The resource that a file of a session is."""
    return f"kernelsvc://sessions/{session}/files/{path}"


def _decoded(tool: definitions.Tool, arguments: Mapping[str, Any]) -> Any:
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return msgspec.convert(given, tool.arguments, strict=False)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BadRequest(
            f"The arguments of {tool.name} can't be taken: {error}. Correct them and call again."
        ) from None


def _content(asked: definitions.UploadFile) -> bytes:
    if (asked.text is None) == (asked.base64 is None):
        raise BadRequest("Give the content either as 'text' or as 'base64'.")
    if not asked.path.strip("/"):
        raise BadRequest("Name the file in 'path', such as 'data.csv'.")
    try:
        data = asked.text.encode() if asked.text is not None else base64.b64decode(asked.base64 or "", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadRequest("The content is no valid base64 (or no valid text); encode it again.") from None
    if len(data) > MAX_UPLOAD:
        raise TooLarge(f"One call uploads at most {MAX_UPLOAD} bytes; send the file over HTTP, or in parts.")
    return data


def _is_picture(path: str) -> bool:
    return (mimetypes.guess_type(path)[0] or "").startswith("image/")


def _as_text(data: bytes) -> str:
    """Text as text; anything else in base64, said so. A character cut at a piece's end is left for the next."""
    if b"\0" not in data:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if error.start >= len(data) - 3 and error.reason == "unexpected end of data":
                return data.decode("utf-8", "replace")
    return "[base64] " + base64.b64encode(data).decode()


def _last_line(text: str) -> str:
    lines = text.rstrip().rsplit("\n", 1)
    return lines[-1][-MAX_SAID:]


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


def _session_outcome(session: SessionInfo, note: str) -> ToolResult:
    result: Struct = _shown(session, note)
    return outcome(result, f"{note} [session {session.id} is {session.state}]")
