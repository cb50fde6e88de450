"""E2B's commands over a real server: programs beside the kernel, by plain HTTP."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served, serving
from waiting import wait_for

from kernelsvc.protocol import connect


class Box:
    """A session as a sandbox, spoken to as E2B's clients do."""

    def __init__(self, served: Served, id: str | None = None) -> None:
        self.served = served
        self.id = id or served.call("POST", "/v1/sessions", {})["id"]

    def control(self, action: str, **asked: Any) -> int:
        """Call the control plane; return the status."""
        connection = self._connection()
        try:
            connection.request("POST", f"/sandboxes/{self.id}/{action}", json.dumps(asked), self.headers())
            return connection.getresponse().status
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.served.url.removeprefix("http://"), timeout=30)

    def headers(self, **more: str) -> dict[str, str]:
        return {"X-API-KEY": self.served.token, "E2b-Sandbox-Id": self.id, **more}

    def ask(self, name: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        connection = self._connection()
        try:
            connection.request("POST", f"/process.Process/{name}", json.dumps(body or {}), self.headers())
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        finally:
            connection.close()

    def stream(self, name: str, *messages: dict[str, Any], **headers: str) -> Iterator[dict[str, Any]]:
        """Events as they come; the stream's end last."""
        connection = self._connection()
        try:
            more = self.headers(**{"Content-Type": connect.STREAM}, **headers)
            connection.request("POST", f"/process.Process/{name}", b"".join(map(connect.envelope, messages)), more)
            response = connection.getresponse()
            assert response.status == 200
            data = bytearray()
            while piece := response.read1(65536):
                data += piece
                yield from connect.take(data)
        finally:
            connection.close()

    def start(self, line: str, **more: Any) -> Iterator[dict[str, Any]]:
        headers = more.pop("headers", {})
        config = {"cmd": "/bin/sh", "args": ["-c", line], **more.pop("process", {})}
        return self.stream("Start", {"process": config, **more}, **headers)

    def run(self, line: str, **more: Any) -> tuple[str, dict[str, Any]]:
        return told(self.start(line, **more))


def told(events: Iterator[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Standard output and the end."""
    out, end = b"", {}
    for each in events:
        event = each.get("event", {})
        out += connect.as_bytes(event.get("data", {}).get("stdout", ""))
        end = event.get("end", end)
    return out.decode(), end


def pid_of(events: Iterator[dict[str, Any]]) -> int:
    return int(next(events)["event"]["start"]["pid"])


@pytest.fixture(scope="module")
def box(served: Served) -> Iterator[Box]:
    made = Box(served)
    yield made
    served.call("DELETE", f"/v1/sessions/{made.id}")


def test_a_command_runs_in_the_session_s_directory(box: Box) -> None:
    config = {"envs": {"WHOM": "you"}, "cwd": "/home/user"}
    out, end = box.run("echo $WHOM; pwd; echo x > made.txt; exit 3", process=config)
    assert out == "you\n/home/user\n"
    assert end == {"exitCode": 3, "exited": True, "status": "exit status 3"}
    cell = box.served.call("POST", f"/v1/sessions/{box.id}/cells", {"code": "print(open('made.txt').read())"})
    assert cell["text"].strip() == "x"


def test_it_is_on_the_record(box: Box) -> None:
    box.run("exit 7")
    found = box.served.call("GET", f"/v1/sessions/{box.id}/events?limit=1000")["events"]
    begun = [each for each in found if each["type"] == "program_started"][-1]
    wait_for(
        lambda: [
            each
            for each in box.served.call("GET", f"/v1/sessions/{box.id}/events?limit=1000")["events"]
            if each["type"] == "program_ended" and each["program"] == begun["program"] and each["exit_code"] == 7
        ],
        what="the end on the record",
    )
    assert begun["argv"] == ["/bin/sh", "-c", "exit 7"]
    assert "exit 7" in json.dumps(box.served.call("GET", f"/v1/sessions/{box.id}/notebook"))


def test_input_signals_and_the_list(box: Box) -> None:
    events = box.start("read a; echo got $a; sleep 60", tag="mine", stdin=True)
    pid = pid_of(events)
    _, listed = box.ask("List")
    assert [(each["pid"], each["tag"]) for each in listed["processes"]] == [(pid, "mine")]
    given = {"process": {"tag": "mine"}, "input": {"stdin": connect.as_text(b"this\n")}}
    assert box.ask("SendInput", given) == (200, {})
    assert connect.as_bytes(next(events)["event"]["data"]["stdout"]) == b"got this\n"
    assert box.ask("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"}) == (200, {})
    assert told(events)[1]["status"] == "signal: terminated"
    status, said = box.ask("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"})
    assert (status, said["code"]) == (404, "not_found")


def test_input_as_a_stream_and_its_end(box: Box) -> None:
    events = box.start("cat", stdin=True)
    pid = pid_of(events)
    data = [{"event": {"data": {"input": {"stdin": connect.as_text(b"x" * 10_000)}}}} for _ in range(20)]
    answers = list(box.stream("StreamInput", {"event": {"start": {"process": {"pid": pid}}}}, *data))
    assert answers == [{}, {}]
    assert box.ask("CloseStdin", {"process": {"pid": pid}}) == (200, {})
    assert len(told(events)[0]) == 200_000


def test_whoever_leaves_changes_nothing_and_may_come_back(box: Box) -> None:
    events = box.start("read a; echo and on; exit 5", stdin=True)
    pid = pid_of(events)
    events.close()  # type: ignore[attr-defined]
    again = box.stream("Connect", {"process": {"pid": pid}})
    assert pid_of(again) == pid
    box.ask("SendInput", {"process": {"pid": pid}, "input": {"stdin": connect.as_text(b"\n")}})
    assert told(again) == ("and on\n", {"exitCode": 5, "exited": True, "status": "exit status 5"})


def test_a_time_limit_ends_it(box: Box) -> None:
    *_, last = box.start("sleep 60", headers={"Connect-Timeout-Ms": "200"})
    assert last["error"]["code"] == "deadline_exceeded"
    wait_for(lambda: not box.ask("List")[1].get("processes"), what="the program's end")


def test_silence_is_filled(box: Box) -> None:
    events = box.start("sleep 60", headers={"Keepalive-Ping-Interval": "1"})
    pid = pid_of(events)
    assert next(events) == {"event": {"keepalive": {}}}
    box.ask("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert told(events)[1]["exitCode"] == -1


def test_a_terminal_and_its_size(box: Box) -> None:
    events = box.start("read a; stty size", pty={"size": {"cols": 100, "rows": 30}})
    pid = pid_of(events)
    assert box.ask("Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 40, "rows": 20}}}) == (200, {})
    box.ask("SendInput", {"process": {"pid": pid}, "input": {"pty": connect.as_text(b"\n")}})
    said = b"".join(connect.as_bytes(each.get("event", {}).get("data", {}).get("pty", "")) for each in events)
    assert b"20 40" in said


def test_a_flood_is_bounded_by_its_reader(box: Box) -> None:
    events = box.start("yes | head -c 20000000")
    assert len(told(events)[0]) == 20_000_000


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({}, "invalid_argument"),
        ({"process": {"cmd": "no-such-program"}}, "invalid_argument"),
        ({"process": {"cmd": "true", "cwd": "/no/such"}}, "invalid_argument"),
        ({"process": {"cmd": "echo", "args": ["x" * 200_000]}}, "resource_exhausted"),
    ],
)
def test_what_can_t_be_started_is_said_in_the_stream(box: Box, message: dict[str, Any], code: str) -> None:
    (last,) = box.stream("Start", message)
    assert last["error"]["code"] == code
    assert last["error"]["message"]


def test_a_session_s_end_is_its_programs_end(served: Served) -> None:
    box = Box(served)
    events = box.start("sleep 60")
    pid_of(events)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            told(events)
        except http.client.IncompleteRead as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    served.call("DELETE", f"/v1/sessions/{box.id}")
    reader.join(20)
    # The stream breaks off. E2B's clients take that as the end of the sandbox and raise their own exception.
    assert ended


def test_it_is_closed_without_a_secret(box: Box) -> None:
    connection = http.client.HTTPConnection(box.served.url.removeprefix("http://"), timeout=30)
    for name in ("List", "Start", "Connect", "SendInput", "StreamInput", "SendSignal", "CloseStdin", "Update"):
        connection.request("POST", f"/process.Process/{name}", b"{}", {"E2b-Sandbox-Id": box.id})
        response = connection.getresponse()
        assert response.status == 401, name
        assert json.loads(response.read())["code"] == "unauthenticated"
    connection.close()


def test_a_pause_stops_programs_and_a_resume_continues_them(served: Served) -> None:
    """A session with programs stays in memory through a pause, also through one at the end of its lease."""
    box = Box(served)
    events = box.start("while read line; do echo got $line; done; exit 3", stdin=True)
    pid = next(each["event"]["start"]["pid"] for each in events if "start" in each.get("event", {}))

    def state() -> str:
        code = f"print(open('/proc/{pid}/stat').read().rpartition(')')[2].split()[0])"
        return str(served.call("POST", f"/v1/sessions/{box.id}/cells", {"code": code})["outputs"][0]["text"].strip())

    box.control("timeout", timeout=600)
    assert box.control("pause") == 204
    wait_for(lambda: state() == "T", what="the stop of the program")
    assert box.control("connect", timeout=600) == 201
    wait_for(lambda: state() == "S", what="the program to continue")
    box.ask("SendInput", {"process": {"pid": pid}, "input": {"stdin": connect.as_text(b"on\n")}})
    assert next(each["event"]["data"]["stdout"] for each in events if "data" in each["event"])
    assert box.control("pause") == 204
    assert "hibernated" not in kinds(box)
    box.ask("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})  # 502: the sandbox is paused
    assert box.control("connect", timeout=600) == 201
    box.ask("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert [event for event in events if "end" in event.get("event", {})]
    assert box.control("pause") == 204
    wait_for(lambda: "hibernated" in kinds(box), what="the variables to go to disk")


def test_a_program_keeps_running_after_a_pause_by_the_lease(served: Served) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=30)
    body = json.dumps({"templateID": "base", "timeout": 600, "autoPause": True})
    connection.request("POST", "/v2/sandboxes", body, {"X-API-KEY": served.token})
    box = Box(served, json.loads(connection.getresponse().read())["sandboxID"])
    connection.close()
    events = box.start("echo $$; exec sleep 100")
    pid = next(each["event"]["start"]["pid"] for each in events if "start" in each.get("event", {}))
    assert box.control("timeout", timeout=0) == 204
    wait_for(lambda: served.call("GET", f"/v1/sessions/{box.id}")["paused"], what="the pause")
    assert box.control("connect", timeout=600) == 201
    assert [each["pid"] for each in box.ask("List")[1]["processes"]] == [pid]
    assert "hibernated" not in kinds(box)


def test_a_session_does_not_fall_asleep_beside_its_program(short_tmp: Path) -> None:
    with serving(short_tmp / "sleepy", "--hibernate-seconds", "0.5") as served:
        box = Box(served)
        events = box.stream("Start", {"process": {"cmd": "head", "args": ["-n1"]}, "stdin": True})
        pid = next(events)["event"]["start"]["pid"]
        other = Box(served)
        wait_for(lambda: "hibernated" in kinds(other), what="the other session to fall asleep")
        assert "hibernated" not in kinds(box)
        box.ask("SendInput", {"process": {"pid": pid}, "input": {"stdin": connect.as_text(b"x\n")}})
        assert [event for event in events if "end" in event.get("event", {})]
        wait_for(lambda: "hibernated" in kinds(box), what="the session to fall asleep")
        assert next(box.stream("Start", {"process": {"cmd": "/bin/true"}}))["event"]["start"]["pid"] > 0


def kinds(box: Box) -> list[str]:
    page = box.served.call("GET", f"/v1/sessions/{box.id}/events?limit=1000")
    return [event["type"] for event in page["events"]]
