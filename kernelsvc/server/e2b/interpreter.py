"""The interpreter of a sandbox: ``/execute`` and ``/contexts``.

The sandbox's own session is its first context. Each further context is a sidecar
session: its own kernel in the same directory, which ends with the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from kernelsvc.errors import BadRequest, KernelsvcError, NotFound, NotSupported
from kernelsvc.model import events as ev
from kernelsvc.model.objects import CellInfo, CellRequest, Principal, SessionInfo, SessionRequest
from kernelsvc.protocol import e2b
from kernelsvc.protocol import e2b_results as results
from kernelsvc.server.e2b import models
from kernelsvc.server.e2b.handler import SandboxHandler
from kernelsvc.server.native.websocket import CHUNK_BYTES

log = logging.getLogger(__name__)

#: Seconds of silence after which a keepalive line is sent.
KEEPALIVE_SECONDS = 5.0
#: Seconds that an incomplete line waits for its end. ``print`` writes a text and its newline separately.
LINE_SECONDS = 0.02
#: Longest text in a status line.
MAX_REASON = 200
#: Names of Python in requests.
_PYTHON = frozenset({"", "python", "python3", "ipython"})
#: E2B's short names of languages.
_ALIASES = {"js": "javascript", "ts": "typescript"}


class InterpreterRequest(msgspec.Struct, kw_only=True):
    """``POST /execute``."""

    code: str
    context_id: str | None = None
    language: str | None = None
    env_vars: dict[str, str] | None = None


class NewContextRequest(msgspec.Struct, kw_only=True):
    """``POST /contexts``."""

    cwd: str | None = None
    language: str | None = None


class InterpreterHandler(SandboxHandler):
    """Base of the handlers of a sandbox's contexts."""

    route = "/contexts"
    port = e2b.INTERPRETER_PORT
    reason: str | None = None
    purposes = (e2b.ENVD, e2b.TRAFFIC)

    def set_status(self, status_code: int, reason: str | None = None) -> None:
        """Tornado's hook: put the error into the status line, which is all that E2B's JavaScript client shows."""
        super().set_status(status_code, self.reason if reason is None and status_code >= 400 else reason)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's hook: put a failure into the status line too."""
        info = kwargs.get("exc_info")
        if info and isinstance(info[1], KernelsvcError):
            self.reason = "".join(c if " " <= c <= "~" else "?" for c in info[1].message)[:MAX_REASON]
        super().write_error(status_code, **kwargs)

    def decoded(self, kind: type[Any]) -> Any:
        """Decode the body.

        Raises:
            BadRequest: It is invalid.
        """
        try:
            return msgspec.convert(self.json_body(), kind)
        except msgspec.ValidationError as error:
            raise BadRequest(f"The body can't be read: {error}.") from None

    def contexts(self) -> list[SessionInfo]:
        """Return the sandbox's contexts, the oldest first."""
        service = self.context.service
        return [service.get(self.who, self.sandbox), *service.leases.sidecars(self.who, self.sandbox)]

    def find(self, context: str) -> SessionInfo:
        """Return a context by its id.

        Raises:
            NotFound: The sandbox has no such context.
        """
        session = e2b.session_id(context)
        for each in self.contexts():
            if each.id == session:
                return each
        raise NotFound(f"Context {context} not found")

    def template_of(self, language: str) -> str | None:
        """Return the template of a language. None: the sandbox's own.

        Raises:
            NotSupported: No template runs the language.
        """
        if language.lower() in _PYTHON:
            return None
        templates = self.context.service.templates()
        wanted = _ALIASES.get(language.lower(), language.lower())
        for name in (wanted, "typescript" if wanted == "javascript" else wanted):  # TypeScript includes JavaScript
            for each in templates:
                if name in (str(each.get("language", "")).lower(), str(each["name"]).lower()):
                    return str(each["name"])
        known = sorted({str(each.get("language") or "python") for each in templates})
        raise NotSupported(
            f"This server does not run {language[:64]!r}. It runs {', '.join(known)}. "
            "The server's operator can install a Jupyter kernel for it."
        )

    async def new_context(self, language: str, cwd: str | None, *, default: bool = False) -> SessionInfo:
        """Create a further context.

        Args:
            language: Of its code.
            cwd: Its working directory. None: the sandbox's.
            default: Whether code in this language runs there if the request names no context.

        Raises:
            NotSupported: No template runs the language.
            BadRequest: There is no such directory.
        """
        service = self.context.service
        template = self.template_of(language)
        labels = {models.LANGUAGE: language or "python", models.CWD: (cwd or "")[:256]}
        if default:
            labels[models.DEFAULT] = "yes"
        request = SessionRequest(template=template, sidecar_of=self.sandbox, labels=labels)
        made = await service.create(self.who, request)
        if cwd:
            try:
                await service.environment.change(self.who, made.id, {}, cwd)
            except KernelsvcError:
                await service.close(self.who, made.id, reason="its directory does not exist")
                raise
        return made


def context_model(session: SessionInfo) -> dict[str, str]:
    """Return a context in E2B's format."""
    labels = session.labels if session.sidecar_of else {}
    return {
        "id": e2b.shown_id(session.id),
        "language": labels.get(models.LANGUAGE, "python"),
        "cwd": labels.get(models.CWD) or models.HOME,
    }


class ContextsHandler(InterpreterHandler):
    """Handler of ``/contexts``."""

    async def get(self) -> None:
        """List the contexts."""
        self.answer([context_model(each) for each in self.contexts()])

    async def post(self) -> None:
        """Create a context."""
        wanted = self.decoded(NewContextRequest)
        made = await self.while_connected(self.new_context(wanted.language or "", wanted.cwd))
        self.answer(context_model(made))


class ContextHandler(InterpreterHandler):
    """Handler of ``/contexts/{id}``."""

    async def delete(self, context: str) -> None:
        """Close a context. The sandbox's first one ends only with the sandbox."""
        found = self.find(unquote(context))
        if found.id == self.sandbox:
            raise BadRequest("The sandbox's first context can't be removed. Restart it, or kill the sandbox.")
        await self.context.service.close(self.who, found.id, reason="context removed")
        self.answer(None)


class RestartHandler(InterpreterHandler):
    """Handler of ``/contexts/{id}/restart``."""

    async def post(self, context: str) -> None:
        """Restart the context with empty variables, in its first directory."""
        found = self.find(unquote(context))
        service = self.context.service
        await self.while_connected(service.restart(self.who, found.id))
        if found.sidecar_of and (cwd := found.labels.get(models.CWD)):
            await service.environment.change(self.who, found.id, {}, cwd)
        self.answer({})


class ExecuteHandler(InterpreterHandler):
    """Handler of ``/execute``: runs code and streams its results as lines.

    A lost connection interrupts the code, as E2B's clients expect of their own
    time-outs.
    """

    route = "/execute"

    async def post(self) -> None:
        """Run the code."""
        wanted = self.decoded(InterpreterRequest)
        if wanted.context_id and wanted.language:
            raise BadRequest("Only one of context_id or language can be provided")
        await self.while_connected(self._run(wanted))

    async def _run(self, wanted: InterpreterRequest) -> None:
        session = await self._choose_context(wanted)
        environ = wanted.env_vars or {}
        before = await self.context.service.environment.change(self.who, session, environ) if environ else {}
        try:
            await self._stream(session, wanted, sorted(environ))
        finally:
            if before:
                self.context.background.start(self._undo(self.who, session, before))

    async def _choose_context(self, wanted: InterpreterRequest) -> str:
        if wanted.context_id:
            return self.find(wanted.context_id).id
        language = wanted.language or ""
        if self.template_of(language) is None:
            return self.sandbox
        for each in self.contexts():
            if each.labels.get(models.LANGUAGE) == language and models.DEFAULT in each.labels:
                return each.id
        return (await self.new_context(language, None, default=True)).id

    async def _undo(self, who: Principal, session: str, before: Mapping[str, str | None]) -> None:
        with contextlib.suppress(KernelsvcError):  # the session has ended, or its kernel was replaced
            await self.context.service.environment.change(who, session, before)

    async def _stream(self, session: str, wanted: InterpreterRequest, env_names: list[str]) -> None:
        service = self.context.service
        metadata = {"e2b": {"env_names": env_names}} if env_names else {}
        request = CellRequest(code=wanted.code, on_disconnect="interrupt", on_error="continue", metadata=metadata)
        cell = await service.execute(self.who, session, request, wait="queued", client=self)
        self.set_header("Content-Type", "application/x-ndjson")
        await self._send_lines([results.first(session, cell.id)])
        subscription = service.attach(self.who, session, after=cell.seq.first - 1)
        try:
            await self._stream_lines(subscription, cell)
        finally:
            subscription.close()
            service.client_gone(self)

    async def _stream_lines(self, subscription: Any, cell: CellInfo) -> None:
        lines = results.ResultLines(cell.id)
        quiet = asyncio.get_running_loop().time()
        while not lines.ended:
            loop = asyncio.get_running_loop()
            wait = LINE_SECONDS if lines.unfinished else max(0.0, quiet + KEEPALIVE_SECONDS - loop.time())
            try:
                async with asyncio.timeout(wait) as silence, self.context.entries(self.who, subscription) as batch:
                    silence.reschedule(None)
                    if not batch:  # the session is closed
                        return
                    wrote = self._write_entries(lines, batch)
                    flushed = self.flush() if wrote else None
            except TimeoutError:
                await self._send_lines(lines.rest() or [results.KEEPALIVE])
                quiet = loop.time()
                continue
            if flushed is not None:
                await flushed
                quiet = loop.time()

    def _write_entries(self, lines: results.ResultLines, batch: list[bytes]) -> bool:
        """Write the lines that entries become. Return whether there are any."""
        said = [line for entry in batch for line in lines.of(ev.decode(entry))]
        self._check_end(lines)
        for line in said:
            self.write(results.encode(line))
        return bool(said)

    def _check_end(self, lines: results.ResultLines) -> None:
        if lines.ended and self.is_ended(self.sandbox):
            self.break_off()

    async def _send_lines(self, lines: list[results.Line]) -> None:
        size = 0
        for line in lines:
            data = results.encode(line)
            self.write(data)
            size += len(data)
            if size >= CHUNK_BYTES:
                await self.flush()
                size = 0
        if lines:
            await self.flush()


_CONTEXT = r"(?P<context>[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"/execute", ExecuteHandler),
    (r"/contexts", ContextsHandler),
    (rf"/contexts/{_CONTEXT}", ContextHandler),
    (rf"/contexts/{_CONTEXT}/restart", RestartHandler),
]
