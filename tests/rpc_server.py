"""A small server that speaks the contract, with faults on order.

Cells are orders, not Python: ``lines N`` prints N numbered lines, ``fail``
raises, ``ask`` waits for input, anything else gives a result. What it has run
is counted, so that a test can say "once".
"""

import asyncio
import contextlib
import json
import socket

import msgspec
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from kernelsvc import errors
from kernelsvc.model.events import SandboxReport
from kernelsvc.model.limits import Limits, Usage
from kernelsvc.model.objects import SessionInfo
from kernelsvc.protocol import jsonrpc, methods

TOKEN = "secret"


class Log:
    """One session: its events and who waits for more."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.events: list[dict] = []
        self.cells: dict[str, dict] = {}
        self.ended: dict[str, asyncio.Event] = {}
        self.answers: asyncio.Queue[str] = asyncio.Queue()
        self.runs = 0
        self.closed = False
        self.files: dict[str, bytes] = {}
        self.changed = asyncio.Event()
        self.add("session_started", principal="me")

    def add(self, type: str, **fields) -> dict:
        event = {"session": self.id, "seq": len(self.events) + 1, "at": "2026-01-01T00:00:00.000000Z", "type": type}
        self.events.append(event | fields)
        self.changed.set()
        self.changed = asyncio.Event()
        return event

    def shown(self) -> dict:
        return msgspec.to_builtins(
            SessionInfo(
                id=self.id, name=None, template="python3", state="closed" if self.closed else "idle", created_at="",
                last_activity_at="", expires_at=None, principal="me", labels={}, limits=Limits(), usage=Usage(),
                last_seq=len(self.events), execution_count=self.runs, parent=None, kernel=None,
                sandbox=SandboxReport(), checkpoints=[],
            )
        )  # fmt: skip


class Server:
    """The faults: ``drop_after`` sockets are cut after that many events; ``skip`` leaves one event number out."""

    def __init__(self) -> None:
        self.sessions: dict[str, Log] = {}
        self.keys: dict[str, str] = {}
        self.sockets: set[Door] = set()
        self.calls: list[str] = []
        self.drop_after: int | None = None
        self.skip: int | None = None
        self.refuse_at: int | None = None
        self.mute: set[str] = set()
        self.tasks: set[asyncio.Task] = set()
        self.http: HTTPServer | None = None
        self.port = 0

    async def start(self, port: int = 0, uds: str | None = None) -> str:
        app = Application(
            [(r"/v1/ws", Door, {"server": self}), (r"/v1/sessions/([^/]+)/(.+)", Files, {"server": self})]
        )
        self.http = HTTPServer(app, max_buffer_size=1 << 30)
        sockets = [bind_unix_socket(uds)] if uds else bind_sockets(port, "127.0.0.1", family=socket.AF_INET)
        self.http.add_sockets(sockets)
        if uds:
            return f"unix:{uds}"
        self.port = sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """As a crash would: sockets end; logs stay."""
        if self.http is not None:
            self.http.stop()
            await self.http.close_all_connections()
        self.cut()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def cut(self) -> None:
        for door in list(self.sockets):
            door.ws_connection.stream.close()

    def spawn(self, work) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def find(self, session: str) -> Log:
        if session not in self.sessions:
            raise errors.NotFound(f"There is no session {session}.")
        return self.sessions[session]

    async def run(self, log: Log, cell: dict) -> None:
        id, code = cell["id"], cell["code"]
        log.runs += 1
        log.add("cell_started", cell=id, execution_count=log.runs)
        reason = "ok"
        if code.startswith("lines "):
            for number in range(int(code.split()[1])):
                log.add("stream", cell=id, name="stdout", text=f"{number}\n")
                cell["text"] += f"{number}\n"
                if number % 50 == 0:
                    await asyncio.sleep(0)
        elif code == "fail":
            cell["error"] = {"ename": "ValueError", "evalue": "no", "traceback": ["no"]}
            log.add("error", cell=id, **cell["error"])
            reason = "error"
        elif code == "ask":
            log.add("input_requested", cell=id, prompt="name? ", password=False)
            cell["text"] = await log.answers.get()
        elif code == "wait":
            await asyncio.Event().wait()
        else:
            log.add("result", cell=id, data={"text/plain": code}, metadata={}, execution_count=log.runs)
            cell["text"] = code
        log.add("cell_finished", cell=id, reason=reason)
        cell.update(state="finished", reason=reason, execution_count=log.runs)
        cell["seq"]["last"] = len(log.events)
        log.ended[id].set()


class Door(WebSocketHandler):
    def initialize(self, server: Server) -> None:
        self.server = server
        self.readers: dict[str, asyncio.Task] = {}

    def prepare(self) -> None:
        if self.request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.set_status(401)
            self.finish(json.dumps(errors.Unauthenticated().to_json()))

    def open(self) -> None:
        self.server.sockets.add(self)

    def on_close(self) -> None:
        self.server.sockets.discard(self)
        for task in self.readers.values():
            task.cancel()

    def on_message(self, message) -> None:
        self.server.spawn(self.serve(message))

    async def serve(self, message) -> None:
        request = jsonrpc.decode(message)
        name = request.method.name
        self.server.calls.append(name)
        if name in self.server.mute:
            return
        try:
            result = await getattr(self, name.replace(".", "_"))(request.params)
            answer = {"result": result}
        except errors.KernelsvcError as error:
            answer = {"error": {"code": -32000, "message": error.message, "data": error.to_json()}}
        with contextlib.suppress(WebSocketClosedError):
            await self.write_message(json.dumps({"jsonrpc": "2.0", "id": request.id} | answer))

    async def info(self, params):
        return {"version": "test"}

    async def session_create(self, params):
        key = params.idempotency_key
        if key not in self.server.keys:
            id = f"s{len(self.server.sessions)}"
            self.server.sessions[id] = Log(id)
            self.server.keys[key] = id
        return self.server.sessions[self.server.keys[key]].shown()

    async def session_get(self, params):
        return self.server.find(params.session).shown()

    async def session_list(self, params):
        return {"sessions": [log.shown() for log in self.server.sessions.values()], "next_page": None}

    async def session_interrupt(self, params):
        return self.server.find(params.session).shown()

    async def session_close(self, params):
        log = self.server.find(params.session)
        if not log.closed:
            log.closed = True
            log.add("session_closed", reason="closed")
        return log.shown()

    async def session_attach(self, params):
        log = self.server.find(params.session)
        await self.session_detach(params)
        self.readers[log.id] = asyncio.get_running_loop().create_task(self.follow(log, params.after))
        return {"session": log.id, "last_seq": len(log.events)}

    async def session_detach(self, params):
        if task := self.readers.pop(params.session, None):
            task.cancel()

    async def follow(self, log: Log, after: int) -> None:
        server = self.server
        while True:
            changed = log.changed
            for event in log.events[after:]:
                after = event["seq"]
                if server.refuse_at == after:
                    error = errors.CursorExpired().to_json()
                    params = {"session": log.id, "error": error}
                    await self.write_message(json.dumps({"jsonrpc": "2.0", "method": "detached", "params": params}))
                    return
                if server.skip == after:
                    server.skip = None
                    continue
                try:
                    await self.write_message(json.dumps({"jsonrpc": "2.0", "method": "event", "params": event}))
                except WebSocketClosedError:
                    return
                if server.drop_after is not None:
                    server.drop_after -= 1
                    if server.drop_after == 0:
                        server.drop_after = None
                        self.ws_connection.stream.close()
                        return
            await changed.wait()

    async def session_execute(self, params):
        log = self.server.find(params.session)
        if log.closed:
            raise errors.SessionClosed
        cell = log.cells.get(params.cell)
        if cell is None:
            first = log.add("cell_queued", cell=params.cell, code=params.code)["seq"]
            cell = log.cells[params.cell] = {
                "id": params.cell, "session": log.id, "code": params.code, "state": "queued", "outputs": [],
                "text": "", "error": None, "seq": {"first": first, "last": first},
            }  # fmt: skip
            log.ended[params.cell] = asyncio.Event()
            self.server.spawn(self.server.run(log, cell))
        elif cell["code"] != params.code:
            raise errors.CellExists
        if params.wait == "finished":
            await log.ended[params.cell].wait()
        return cell

    async def session_batch(self, params):
        found = []
        for cell in params.cells:
            found.append(
                await self.session_execute(
                    methods.ExecuteParams(session=params.session, **msgspec.structs.asdict(cell))
                )
            )
        return found

    async def session_input(self, params):
        self.server.find(params.session).answers.put_nowait(params.text)

    async def session_branch(self, params):
        if params.at == "nowhere":
            raise errors.CannotFork("It holds a thread.", reasons=["thread 'worker' runs"])
        for _ in range(params.count):
            id = f"s{len(self.server.sessions)}"
            self.server.sessions[id] = Log(id)
        return [log.shown() for log in list(self.server.sessions.values())[-params.count :]]


class Files(RequestHandler):
    def initialize(self, server: Server) -> None:
        self.server = server

    def prepare(self) -> None:
        if self.request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.set_status(401)
            self.finish(json.dumps(errors.Unauthenticated().to_json()))

    def get(self, session: str, what: str) -> None:
        log = self.server.find(session)
        name = what.removeprefix("files/")
        if what == "events":
            after = int(self.get_argument("after"))
            page = log.events[after : after + 4]
            self.write({"events": page, "next_after": after + len(page), "last_seq": len(log.events)})
        elif what == "files/":
            self.write({"files": [{"path": name, "size": len(data)} for name, data in log.files.items()]})
        elif what == "notebook":
            self.write(self.get_argument("format").encode())
        elif name in log.files:
            self.write(log.files[name])
        else:
            self.set_status(404)
            self.write(errors.NotFound(f"There is no file {name}.").to_json())

    def put(self, session: str, what: str) -> None:
        self.server.find(session).files[what.removeprefix("files/")] = self.request.body
        self.set_status(201)

    def delete(self, session: str, what: str) -> None:
        self.server.find(session).files.pop(what.removeprefix("files/"))
        self.set_status(204)
