"""What runs inside the virtual machine: install as the docs write it, then check. Talks to the serial line.

Each check prints ``CHECK name ok`` or ``CHECK name FAIL why``; the last line is ``VM DONE``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path("/opt/src")
URL = "http://127.0.0.1:8888"
PATIENCE = 480.0  # everything is emulated


def say(text: str) -> None:
    with open("/dev/ttyS0", "w") as line:
        line.write(text.replace("\n", " | ")[:3000] + "\r\n")


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=SOURCE, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{command}: {done.returncode} {done.stdout[-1500:]} {done.stderr[-1500:]}")
    return done.stdout.strip()


def token() -> str:
    return re.search(r"KERNELSVC_TOKEN=(\w+)", Path("/etc/kernelsvc/kernelsvc.env").read_text())[1]  # type: ignore[index]


def call(method: str, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        URL + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token()}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {path}: {error.code} {error.read()[:1000]!r}") from None


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = holds()
            if found:
                return found
        except (AssertionError, OSError) as error:
            found = error
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {found}")
        time.sleep(0.2)


def session(**limits: Any) -> str:
    return str(call("POST", "/v1/sessions", {"limits": limits})["id"])


def cell(id: str, code: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = call("POST", f"/v1/sessions/{id}/cells", {"code": code, **more})
    return found


def ready() -> bool:
    return urllib.request.urlopen(URL + "/readyz", timeout=30).status == 200


# --- the checks, in order ---------------------------------------------------------------


def installs_as_the_docs_write_it() -> str:
    block = re.search(r"```sh\n(.*?)```", (SOURCE / "systemd" / "README.md").read_text(), re.S)[1]  # type: ignore[index]
    for line in block.strip().splitlines():
        if "pip install" in line or line.startswith("curl"):
            continue  # it was installed when the image was made; readiness is waited for below
        sh(line)
    eventually(ready)
    return sh("systemctl is-active kernelsvc.service kernelsvc-kernels.service kernelsvc.socket").replace("\n", " ")


def sessions_are_fully_confined() -> str:
    id = session()
    about = call("GET", f"/v1/sessions/{id}")["sandbox"]
    assert about["policy"] == "required", about
    assert about["isolation"] == "full", about
    assert about["limits"]["memory_bytes"] == about["limits"]["processes"] == "hard", about
    done = cell(
        id, "import os, getpass\nprint(getpass.getuser(), os.getcwd(), open('/proc/self/cgroup').read().strip())"
    )
    assert done["reason"] == "ok", done
    call("DELETE", f"/v1/sessions/{id}")
    return f"{done['text'].strip()}; lacking: {[lack['layer'] for lack in about['not_enforced']]}"


def memory_is_capped_by_linux_and_the_cause_is_told() -> str:
    id = session(memory_bytes=256 << 20)
    groups = sh("find /sys/fs/cgroup/kernelsvc.slice -name memory.max | xargs grep -l 268435456")
    assert groups, "no cgroup has the cap"
    # Shared memory is not counted by RLIMIT_DATA: only the cgroup stands in its way.
    done = cell(id, "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): m[i] = 1")
    assert done["reason"] == "memory", done
    after = cell(id, "1 + 1")
    call("DELETE", f"/v1/sessions/{id}")
    return f"{done['message']}; the next cell: {after['reason']}"


def tasks_are_capped() -> str:
    id = session(processes=20)
    code = (
        "import os, time\nn = 0\ntry:\n    for _ in range(200):\n        p = os.fork()\n"
        "        if p == 0: time.sleep(100); os._exit(0)\n        n += 1\nexcept OSError as e: print(n, e)"
    )
    done = cell(id, code)
    call("DELETE", f"/v1/sessions/{id}")
    assert done["text"].split()[0].isdigit(), done
    assert int(done["text"].split()[0]) <= 30, done
    return str(done["text"]).strip()


def the_processor_share_holds() -> str:
    id = session(cpu_cores=0.2)
    code = (
        "import time\nt = time.monotonic(); c = time.process_time()\n"
        "while time.monotonic() - t < 5: pass\nprint((time.process_time() - c) / (time.monotonic() - t))"
    )
    done = cell(id, code)
    assert done["reason"] == "ok", done
    share = float(done["text"])
    call("DELETE", f"/v1/sessions/{id}")
    assert share < 0.3, share
    return f"{share:.3f} of 0.2"


def _lives_on(disturb: Callable[[], object]) -> str:
    id = session()
    cell(id, "kept = 41")
    code = "import time\nfor i in range(40): print(i, flush=True); time.sleep(0.25)\nprint('end', kept + 1)"
    queued = call("POST", f"/v1/sessions/{id}/cells?wait=queued", {"code": code})
    time.sleep(2)
    pid = call("GET", f"/v1/sessions/{id}")["kernel"]["pid"]
    disturb()
    eventually(ready)
    path = f"/v1/sessions/{id}/cells/{queued['id']}"
    done = eventually(lambda: (c := call("GET", path))["state"] == "finished" and c)
    assert done["reason"] == "ok", done
    assert done["text"].split() == [*map(str, range(40)), "end", "42"], done
    assert call("GET", f"/v1/sessions/{id}")["kernel"]["pid"] == pid
    call("DELETE", f"/v1/sessions/{id}")
    return "40 lines, none missing, none twice, same kernel"


def a_restart_of_the_server_leaves_sessions_alive() -> str:
    return _lives_on(lambda: sh("systemctl restart kernelsvc.service"))


def a_crash_of_the_server_leaves_sessions_alive() -> str:
    return _lives_on(lambda: sh("kill -9 $(systemctl show -P MainPID kernelsvc.service)"))


def a_second_start_waits_for_nobody() -> str:
    id = session()
    sh("systemctl restart kernelsvc-kernels.service")
    fresh = eventually(session)
    done = cell(str(fresh), "6 * 7")
    assert done["reason"] == "ok", done
    state = call("GET", f"/v1/sessions/{id}")["state"]
    call("DELETE", f"/v1/sessions/{fresh}")
    return f"the old session is {state}"


def caps_that_strike_are_told() -> str:
    id = session(memory_bytes=256 << 20, processes=30)
    hog = "import mmap\n    m = mmap.mmap(-1, 1 << 30)\n    for i in range(0, 1 << 30, 4096): m[i] = 1"
    child = cell(id, f"import os, time\nif os.fork() == 0:\n    {hog}\nprint(os.wait()[1])\ntime.sleep(5)")
    assert child["reason"] == "ok", child
    assert child["message"].startswith("memory: 256 MiB reached; a process of the session was killed"), child
    bomb = cell(id, "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(100); os._exit(0)")
    assert bomb["message"].startswith("processes: 30 reached"), bomb
    events = call("GET", f"/v1/sessions/{id}/events?after=0&limit=1000")["events"]
    told = [event["limit"] for event in events if event["type"] == "limit_reached"]
    assert told == ["memory_bytes", "processes"], told
    call("DELETE", f"/v1/sessions/{id}")
    return f"{child['message']} {bomb['message']}"


def _bytes(method: str, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(
        URL + path, method=method, data=body, headers={"Authorization": f"Bearer {token()}"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return bytes(answer.read())


def _files_go_both_ways() -> str:
    id = session()
    about = call("GET", f"/v1/sessions/{id}")["sandbox"]
    assert about["isolation"] == "full", about
    _bytes("PUT", f"/v1/sessions/{id}/files/in/up.txt", b"from the client")
    code = (
        "import os\nprint(open('in/up.txt').read())\nos.makedirs('out', mode=0o700)\n"
        "open('out/made.txt', 'w').write('by the session'); os.chmod('out/made.txt', 0o600)\n"
        "open('in/up.txt', 'a').write(', more')\nprint(os.getuid())"
    )
    done = cell(id, code)
    assert done["text"].startswith("from the client"), done
    assert _bytes("GET", f"/v1/sessions/{id}/files/out/made.txt") == b"by the session"
    assert _bytes("GET", f"/v1/sessions/{id}/files/in/up.txt") == b"from the client, more"
    listed = call("GET", f"/v1/sessions/{id}/files/?recursive=true")["files"]
    assert {"in/up.txt", "out/made.txt"} <= {one["path"] for one in listed}, listed
    _bytes("DELETE", f"/v1/sessions/{id}/files/out/made.txt")
    notebook = json.loads(_bytes("GET", f"/v1/sessions/{id}/notebook?format=ipynb"))
    assert any("from the client" in str(one.get("outputs")) for one in notebook["cells"]), notebook
    branch = call("POST", f"/v1/sessions/{id}/branches", {})[0]["id"]
    there = cell(branch, "print(open('in/up.txt').read()); open('b.txt', 'w').write('b')")
    assert there["text"].startswith("from the client, more\n"), there
    assert _bytes("GET", f"/v1/sessions/{branch}/files/b.txt") == b"b"
    for one in (branch, id):
        call("DELETE", f"/v1/sessions/{one}")
    return f"as user {done['text'].split()[-1]}, {('user' in about['enforced'] and 'by') or 'without'} an id of its own"


def files_go_both_ways() -> str:
    return _files_go_both_ways()


def a_quota_is_a_hard_cap_where_there_are_quotas() -> str:
    """A server that is root, on a filesystem with project quotas."""
    place = Path("/srv/quota")
    place.mkdir()
    sh("truncate -s 600M /srv/quota.img && mkfs.ext4 -q -O quota,project /srv/quota.img")
    sh(f"modprobe loop; modprobe quota_v2; mount -o loop,prjquota /srv/quota.img {place}")
    serve = (
        "systemd-run --unit=quota-test -p Restart=always -p RestartSec=1 -p StartLimitIntervalSec=0 "
        "-E KERNELSVC_TOKEN=quick-token -E KERNELSVC_START_HOST=true "
        f"/opt/kernelsvc/bin/kernelsvc serve --port 8899 --data-dir {place}/data --runtime-dir /run/quota-test"
    )
    sh(serve)

    def ask(method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:8899{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer quick-token", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")

    eventually(lambda: ask("GET", "/v1/sessions") is not None)
    id = eventually(lambda: ask("POST", "/v1/sessions", {"limits": {"disk_bytes": 64 << 20}}))["id"]
    about = ask("GET", f"/v1/sessions/{id}")["sandbox"]
    assert about["limits"]["disk_bytes"] == "hard", about
    code = "import time\nfor n in range(10_000):\n    with open(f'f{n}', 'wb') as f: f.write(bytes(1 << 20))"
    done = ask("POST", f"/v1/sessions/{id}/cells", {"code": code})
    assert done["reason"] == "error", done
    assert done["message"].startswith("disk: 64 MiB reached"), done
    used = int(sh(f"du -sk {place}/data/sessions/{id}/home | cut -f1")) >> 10
    assert 60 <= used <= 64, used
    branch = ask("POST", f"/v1/sessions/{id}/cells", {"code": "import os\nfor n in range(60): os.remove(f'f{n}')"})
    assert branch["reason"] == "ok", branch
    sh(f"systemctl stop quota-test; umount {place}", check=False)
    return f"{done['message']} {used} MiB on disk"


def units_score_as_promised() -> str:
    told = sh(
        "systemd-analyze security --no-pager kernelsvc.service kernelsvc-kernels.service | grep Overall", check=False
    )
    return " ".join(told.split())


def nothing_is_left_after_a_stop() -> str:
    for _ in range(3):
        cell(session(), "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)")
    sh("systemctl stop kernelsvc.socket kernelsvc.service kernelsvc-kernels.service")
    eventually(lambda: sh("pgrep -u kernelsvc", check=False) == "", 60)
    left = sh("find /sys/fs/cgroup/kernelsvc.slice -type d | tail -n +2", check=False)
    assert not left, left
    return "no process, no cgroup"


def hostile_cells_meet_their_walls() -> str:
    """The attack suite, confined, as an ordinary user with a delegated version 2 cgroup."""
    sh("useradd -m vmtest; chmod -R a+rX /opt", check=False)
    out = sh(
        "systemd-run --wait --pipe --quiet --collect -p User=vmtest -p 'Delegate=memory pids cpu' "
        "-E PYTHONPATH=/opt/src/tests -E PYTHONDONTWRITEBYTECODE=1 -E HOME=/home/vmtest -E KERNELSVC_CELL_SECONDS=300 "
        "/opt/kernelsvc/bin/python -m attack.driver required"
    )
    sys.path.insert(0, str(SOURCE / "tests"))
    from attack.cells import ALL

    found = json.loads(out)
    assert found["report"]["isolation"] == "full", found["report"]
    assert found["report"]["limits"]["memory_bytes"] == "hard", found["report"]
    wrong = []
    for one in ALL:
        if one.needs == "joblib" and not found["facts"]["joblib"]:
            continue
        wanted = "reached" if one.confined == "works" else one.confined
        result = found["cells"][one.name]
        if result["verdict"] != wanted or not result["clean"] or not result["victim"]:
            wrong.append((one.name, result["verdict"], result["text"][-150:]))
    assert not wrong, wrong
    return f"{len(found['cells'])} cells"


def a_user_id_of_the_machine_s_for_each_session() -> str:
    """``root-host.conf`` as the docs write it: a kernel host that is root, a server that isn't."""
    sh("systemctl stop kernelsvc.socket kernelsvc.service kernelsvc-kernels.service")
    place = "/etc/systemd/system/kernelsvc-kernels.service.d"
    sh(f"install -Dm644 -t {place} systemd/root-host.conf; systemctl daemon-reload")
    try:
        sh("systemctl start kernelsvc-kernels.service kernelsvc.socket kernelsvc.service")
        eventually(ready)
        call("DELETE", f"/v1/sessions/{eventually(session)}")  # on a slow machine the first may time out
        said = _files_go_both_ways()
        assert said.endswith(", by an id of its own"), said
        id = session(memory_bytes=256 << 20)
        about = call("GET", f"/v1/sessions/{id}")["sandbox"]
        assert about["isolation"] == "full", about
        assert about["limits"]["memory_bytes"] == about["limits"]["processes"] == "hard", about
        done = cell(id, "import os\nkept = os.getuid()\nprint(kept, open('/proc/self/uid_map').read().split())")
        uid, *uid_map = re.findall(r"\d+", done["text"])
        assert uid_map == ["0", "0", "4294967295"], done  # no user namespace
        another = session()
        assert cell(another, "import os; print(os.getuid())")["text"].strip() != uid
        died = cell(id, "import os; os.abort()")
        assert died["reason"] == "kernel_died", died
        assert cell(id, "print(kept)")["text"].strip() == uid
        sh("systemctl restart kernelsvc.service")
        eventually(ready)
        assert cell(id, "print(kept)")["text"].strip() == uid
        for one in (id, another):
            call("DELETE", f"/v1/sessions/{one}")
        score = sh("systemd-analyze security --no-pager kernelsvc-kernels.service | grep Overall", check=False)
        return f"{said}; {' '.join(score.split())}"
    finally:
        sh("systemctl stop kernelsvc.socket kernelsvc.service kernelsvc-kernels.service")
        sh(f"rm {place}/root-host.conf; systemctl daemon-reload")


CHECKS = [
    installs_as_the_docs_write_it,
    sessions_are_fully_confined,
    memory_is_capped_by_linux_and_the_cause_is_told,
    tasks_are_capped,
    the_processor_share_holds,
    caps_that_strike_are_told,
    a_quota_is_a_hard_cap_where_there_are_quotas,
    files_go_both_ways,
    a_restart_of_the_server_leaves_sessions_alive,
    a_crash_of_the_server_leaves_sessions_alive,
    units_score_as_promised,
    a_second_start_waits_for_nobody,
    nothing_is_left_after_a_stop,
    a_user_id_of_the_machine_s_for_each_session,
    hostile_cells_meet_their_walls,
]


def main() -> None:
    say(
        f"VM up {Path('/proc/uptime').read_text().split()[0]} s, {os.uname().release}, "
        + sh("systemctl --version | head -1")
    )
    broken = False
    # For who repairs one of them: the first installs, the others are left out.
    wanted = re.search(r"checks=(\S+)", Path("/proc/cmdline").read_text())
    some = [check for check in CHECKS if wanted is None or check.__name__ in wanted[1].split(",")]
    for check in some:
        if broken and check not in (nothing_is_left_after_a_stop, hostile_cells_meet_their_walls):
            say(f"CHECK {check.__name__} FAIL not tried: nothing was installed")
            continue
        started = time.monotonic()
        try:
            say(f"CHECK {check.__name__} ok {check()} ({time.monotonic() - started:.0f} s)")
        except BaseException as error:
            broken = check is installs_as_the_docs_write_it
            say(f"CHECK {check.__name__} FAIL {error!r} {traceback.format_exc()[-600:]}")
            units = "-u 'kernelsvc*' -u quota-test"
            say("LOG " + sh(f"journalctl -b --no-pager {units} -n 30 -o short-precise", check=False)[-2500:])
    say("VM DONE")
    sh("systemctl poweroff --no-block", check=False)


if __name__ == "__main__":
    main()
