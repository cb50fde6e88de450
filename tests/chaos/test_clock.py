"""The clock jumps under a real server. libfaketime gives it another time, and leaves the clocks that count seconds."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from command_line import kernelsvc
from served import Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.errors import KernelsvcError
from kernelsvc.service.directories import FORM_FILE

ROOT = Path(__file__).parents[2]
DAY = 86400
PLACES = (*ROOT.glob(".venv/unpacked/usr/lib/*/faketime"), *Path("/usr/lib").glob("*/faketime"))
LIBRARY = next((each / "libfaketimeMT.so.1" for each in PLACES if (each / "libfaketimeMT.so.1").exists()), None)

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(LIBRARY is None, reason="there is no libfaketime: scripts/bootstrap clock unpacks Debian's"),
]
#: Ends when the file is there, so that the cell spans the jumps.
WAIT = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint('done')"
SERVE = (
    "import http.server, threading\n"
    "server = http.server.ThreadingHTTPServer(('127.0.0.1', 3000), http.server.SimpleHTTPRequestHandler)\n"
    "threading.Thread(target=server.serve_forever, daemon=True).start()"
)


def set_clock(place: Path, seconds: int) -> None:
    """Set the server's clock, relative to the machine's."""
    new = place / "offset.new"
    new.write_text(f"{seconds:+d}s\n")
    new.rename(place / "offset")


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_jumps_end_no_session_and_delete_nothing_and_a_start_in_the_past_is_refused(place):
    offset = place / "offset"
    set_clock(place, 0)
    fake = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "KERNELSVC_LOG_FORMAT": "json",
    }
    retention = ["--retention-seconds", "600", "--retention-action", "remove"]
    served = Served(place, *retention, env=fake).start()
    try:
        made = ["token", "create", "alice", "--days", "1", "--data-dir", str(served.data_dir)]
        alice = kernelsvc(*made, env=served.client_env)[0].strip()
        with Client(served.url, served.token) as client, Client(served.url, alice) as hers:
            closed = client.create_session()
            closed.run("1")
            closed.close()
            busy = client.create_session(limits={"cell_seconds": 300, "idle_seconds": 300, "lifetime_seconds": 900})
            web = hers.create_session()
            web.run(SERVE).raise_for_error()
            address = web.share_port(3000, seconds=3600)
            assert status(address) == 200
            busy.run(WAIT, cell="long", wait="queued")

            set_clock(place, 2 * DAY)
            assert status(address) == 401, "an address ends at a date"
            with pytest.raises(KernelsvcError, match="token"), Client(served.url, alice) as late:
                late.sessions()
            wait_for(lambda: "was set forward" in served.output(), deadline=120, what="the line of the log")
            # A pass of retention is every 60 s, as is the look at the clock: one has come since the jump.
            assert (served.data_dir / "sessions" / closed.id).exists()
            assert busy.info().state == "busy"

            set_clock(place, -DAY)
            other = client.create_session(limits={"cell_seconds": 2})
            began = time.monotonic()
            assert other.run("import time; time.sleep(200)").reason == "timeout"
            assert time.monotonic() - began < 60, "a limit is a duration"
            wait_for(lambda: "was set back" in served.output(), deadline=120, what="the line of the log")
            busy.upload(b"", "go")
            wait_for(lambda: busy.cell("long").text == "done\n", deadline=60, what="the end of the cell")
            assert status(address) == 200

            set_clock(place, 0)
            id, key = busy.id, served.call("GET", "/v1/info")["public_key"]
        lines = [json.loads(line) for line in served.output().splitlines() if '"clock_set"' in line]
        assert [round(line["seconds"] / DAY) for line in lines[:2]] == [2, -3]
        assert served.process is not None
        served.process.send_signal(signal.SIGHUP)
        served.process.wait(30)

        mark = served.data_dir / FORM_FILE
        now = time.time()
        os.utime(mark, (now, now))
        set_clock(place, -DAY)
        done = subprocess.run(served.command(), env=served.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stderr
        assert "Set the clock" in done.stderr
        assert "touch" in done.stderr
        assert mark.stat().st_mtime == pytest.approx(now), "nothing was changed"
        set_clock(place, 0)
        served.start()
        with Client(served.url, served.token) as client:
            assert client.session(id).run("6 * 7").text.strip() == "42"
            client.session(id).close()
        log = served.data_dir / "sessions" / id / "journal.jsonl"
        kernelsvc("verify", "--key", key, str(log), env=served.client_env)
    finally:
        served.stop()
