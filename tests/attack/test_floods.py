"""One session sends without end, and the server's thread must still serve the others.

Each flood is what a session can really send: frames on its own wire that leave no trace in the log, frames that cost
much for their size, and text. A second session's cells must be answered meanwhile, and the
server must have put on record that it made the flood wait. Every flood ends by itself.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from e2b_requests import E2bRequests
from served import Served
from waiting import wait_for

from attack.test_caps import events
from attack.test_descriptors import ANSWER, Guarded, attacking
from kernelsvc.kernels.read_budget import TOTAL_SHARE
from kernelsvc.model.events import LimitReached
from kernelsvc.session.limit_enforcer import SERVER_SHARE

pytestmark = pytest.mark.timeout(120)

#: Seconds that a flood lasts at most. Its session ends before, when the server has paused it and served the others. On
#: a busy machine one large message is seconds of reading and of pause.
FLOOD, PAUSES_SECONDS = 90, 60
#: Cells of the other session that must be answered meanwhile.
CELLS = 5

#: Speaks the wire in place of the kernel: frames without end, with the right numbers.
FRAMES = """
import itertools
def message(content):
    parts = [b"iopub", b'{"msg_id":"a","msg_type":"unheard_of"}', b"{}", b"{}", content]
    offsets = itertools.accumulate([8 * 7] + [len(part) for part in parts])
    return struct.pack("<7Q", 6, *offsets) + b"".join(parts)
def go():
    time.sleep(.3)
    k = w._conn.sock; w._conn = w._send_now = None; k.setblocking(True)
    frame, number, end = struct.Struct("<IBQ"), w.outbox.last, time.time() + SECONDS
    while time.time() < end:
        parts = []
        for _ in range(BATCH):
            number += 1
            payload = PAYLOAD
            parts.append(frame.pack(len(payload), KIND, number) + payload)
        k.sendall(b"".join(parts))
threading.Thread(target=go, daemon=True).start()
"""


def frames(kind: int, payload: str, batch: int) -> str:
    return FRAMES.replace("KIND", str(kind)).replace("PAYLOAD", payload).replace("BATCH", str(batch))


FLOODS = {
    "replies to no request": frames(6, "b'{\"request\":0}'", 2000),
    "messages of an unknown type": frames(2, "message(b'{}')", 500),
    "empty texts of both streams": frames(5, "bytes((1 + number % 2, 0, 0))", 2000),
    "large messages of small objects": frames(2, "LARGE", 1).replace(
        "def go", "LARGE = message(b'{\"a\":[' + b'{\"a\":1},' * 200_000 + b'0]}')\ndef go"
    ),
    "prints": """
def go():
    end = time.time() + SECONDS
    while time.time() < end: print(LINES)
LINES = ("x" * 80 + "\\n") * 50  # one line at a time is no flood on a busy machine
threading.Thread(target=go, daemon=True).start()
""",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as root:
        served = Guarded(Path(root), env={"HOME": root})
        try:
            yield served.start()
        finally:
            served.stop()


def metric(server: Served, name: str) -> float:
    with urllib.request.urlopen(server.url + "/metrics", timeout=ANSWER) as answer:
        found = re.search(rf"^kernelsvc_{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


@pytest.mark.parametrize("code", FLOODS.values(), ids=FLOODS)
def test_a_flood_is_paused_and_other_sessions_are_served(server: Served, code: str) -> None:
    pauses, busy, started = (
        metric(server, "kernel_read_pauses"),
        metric(server, "kernel_read_seconds"),
        time.monotonic(),
    )
    with attacking(server, code.replace("SECONDS", str(FLOOD))) as (_, bystander):
        before = bystander.answered
        # Before its first pause a flood may read as it likes.
        wait_for(lambda: metric(server, "kernel_read_pauses") > pauses + 4, deadline=PAUSES_SECONDS, what="pauses")
        bystander.wait(lambda: bystander.answered >= before + CELLS, what="the other session's answers")
        share = (metric(server, "kernel_read_seconds") - busy) / (time.monotonic() - started)
    # A read that has begun is completed, which takes longer on a busy machine. Without pauses it is near 1.
    assert share < (1 + TOTAL_SHARE) / 2


def test_a_long_flood_is_journaled_in_its_session(server: Served) -> None:
    code = FLOODS["messages of an unknown type"].replace("SECONDS", "15")
    with attacking(server, code) as (session, _), session.events() as stream:
        found = next(each for each in stream if isinstance(each, LimitReached) and each.limit == SERVER_SHARE)
    assert found.enforced_by == "server"
    assert "read with pauses" in found.message
    assert found.cell is msgspec.UNSET


def test_a_flooding_child_ends_with_its_kernel(server: Served) -> None:
    """The kernel's process has ended, and its child writes to the same socket faster than it can be read."""
    code = (
        frames(2, "message(b'{}')", 500)
        .replace("SECONDS", "8")
        .replace(
            "    frame, number",
            "    k = socket.socket(fileno=os.dup(k.fileno())); last = w.outbox.last\n    FORK\n    frame, number",
        )
        .replace("w.outbox.last, time", "last, time")
        .replace(
            "FORK",
            "parent = os.getpid()\n    if os.fork(): return\n    threading.Timer(2, os.kill, (parent, 9)).start()",
        )
    )
    with attacking(server, code) as (session, bystander):
        bystander.wait(lambda: events(server, session.id, "kernel_died"), what="the kernel's end")
        before = bystander.answered
        bystander.wait(lambda: bystander.answered >= before + CELLS, what="the other session's answers")


SLOW = {
    "HTML of tags without end": "display({'text/html': '<script>' * 1_000_000}, raw=True)",
    "a crash dump with a long name": (
        "print('Fatal Python error: x', '', 'Thread 0x1 (most recent call first):', "
        "f'  File \"{\"a\" * 300_000}\", line 1 in b', sep='\\n', file=sys.stderr)"
    ),
    "metadata for many displays": (
        "for _ in range(64): display({'text/plain': ''}, raw=True, display_id='d')\n"
        "display({}, metadata={'a': [1] * 1_900_000}, raw=True, display_id='d', update=True)"
    ),
    "many forms for many displays": (
        "for _ in range(64): display({'text/plain': ''}, raw=True, display_id='d')\n"
        "display({f'a/{number}': '' for number in range(140_000)}, raw=True, display_id='d', update=True)"
    ),
    "subnormal numbers": "display({'application/json': [5e-324] * 500_000}, raw=True)",
}


@pytest.mark.parametrize("code", SLOW.values(), ids=SLOW)
def test_an_output_that_is_slow_to_read_does_not_stop_the_server(server: Served, code: str) -> None:
    """Each of these took the server minutes, or hours."""
    with attacking(server, "import sys") as (session, bystander):
        before = bystander.answered
        session.run(f"import sys\nfrom IPython.display import display\n{code}")
        bystander.wait(lambda: bystander.answered >= before + CELLS, what="the other session's answers")


#: A process beside the kernel changes two files of each directory, so that Linux joins no events.
CHANGES = """
import os, time
if os.fork() == 0:
    end = time.time() + 10
    files = [[os.open(f"w{number}/{name}", os.O_CREAT | os.O_RDWR) for name in "ab"] for number in range(16)]
    while time.time() < end:
        for pair in files:
            for each in pair * 50: os.fchmod(each, 0o600)
    os._exit(0)
"""


def test_changes_of_watched_files_do_not_stop_the_server(server: Served) -> None:
    client = E2bRequests(server)
    with attacking(server, "pass") as (_, bystander):
        box = client.control("POST", "/v2/sandboxes", {"templateID": "base"})[1]
        headers = {"E2b-Sandbox-Id": box["sandboxID"], "E2b-Sandbox-Port": "49983"}
        headers["X-Access-Token"] = box["envdAccessToken"]
        for number in range(16):
            for call, more in (("MakeDir", {}), ("CreateWatcher", {"includeEntry": True})):
                asked = json.dumps({"path": f"w{number}", **more}).encode()
                assert client.raw("POST", f"/filesystem.Filesystem/{call}", asked, headers)[0] == 200
        server.call("POST", f"/v1/sessions/{box['sandboxID']}/cells", {"code": CHANGES})
        before = bystander.answered
        bystander.wait(lambda: bystander.answered >= before + 4 * CELLS, what="the other session's answers")
        client.control("DELETE", f"/sandboxes/{box['sandboxID']}")
