"""A session that puts a link in place of its own directory, where no Landlock forbids it: nobody follows it.

The server is an ordinary user's, for then the directory above the session's is the
session's user's too. Landlock is taken away as a kernel without it would: by its
system calls' not being there.
"""

from __future__ import annotations

import errno
import os
import tempfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served

from attack.missing_syscalls import PATHS, MissingSyscalls
from attack.unprivileged import UID

pytestmark = pytest.mark.timeout(180)

#: From ``sessions/ID/home/user``, that is the data directory.
LINK = "import os\nos.chdir('/')\nos.rename('/home/user', '/home/kept')\nos.symlink({target!r}, '/home/user')"
BACK = "import os\nos.unlink('/home/user')\nos.rename('/home/kept', '/home/user')\nos.chdir('/home/user')"
DATA = "../../.."
SECRET = "the server's own"


class WithoutLandlock(MissingSyscalls):
    calls, error = ("landlock_create_ruleset",), errno.ENOSYS


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp", ignore_cleanup_errors=True) as root:
        if os.geteuid() == 0:
            os.chown(root, UID, UID)
        served = WithoutLandlock(Path(root), env={"HOME": root, **PATHS}).start()
        (served.data_dir / "planted").write_text(SECRET)
        (served.data_dir / "planted").chmod(0o666)
        yield served
        served.stop()


def begin(server: Served, **more: Any) -> str:
    return str(server.call("POST", "/v1/sessions", more)["id"])


def run(server: Served, id: str, code: str) -> dict[str, Any]:
    found: dict[str, Any] = server.call("POST", f"/v1/sessions/{id}/cells", {"code": code})
    return found


def refused(server: Served, method: str, path: str, body: Any = None) -> bool:
    """Whether the server says no; what it says tells nothing."""
    try:
        said: Any = server.call(method, path, body)
    except urllib.error.HTTPError as error:
        said, code = error.read().decode(), error.code
    else:
        code = 0
    assert code < 500, said
    assert SECRET not in str(said)
    assert str(server.data_dir) not in str(said)
    return code > 0


def own_names(server: Served) -> set[str]:
    """What the data directory holds, and whose sessions there are."""
    names = {path.name for path in server.data_dir.iterdir()}
    return names - {"index.sqlite-wal", "index.sqlite-shm", "index.sqlite-journal"}


@pytest.fixture
def linked(server: Served) -> Iterator[str]:
    id = begin(server)
    assert server.call("GET", f"/v1/sessions/{id}")["sandbox"]["isolation"] == "full"
    assert run(server, id, "import os\nopen('mine', 'w').write('mine'); os.listdir('/home')")["reason"] == "ok"
    done = run(server, id, LINK.format(target=DATA))
    assert done["reason"] == "ok", f"the attack does not even begin: {done['text']}"
    yield id
    server.call("DELETE", f"/v1/sessions/{id}")
    assert (server.data_dir / "planted").read_text() == SECRET


def test_files_are_neither_read_nor_written_nor_listed_through_it(server: Served, linked: str) -> None:
    before = own_names(server)
    base = f"/v1/sessions/{linked}/files/"
    for path in ("", "?recursive=true", "planted", "sessions/", "kernelsvc.key"):
        assert refused(server, "GET", base + path)
    assert refused(server, "PUT", base + "written", "x")
    assert refused(server, "DELETE", base + "planted")
    assert own_names(server) == before
    assert run(server, linked, BACK)["reason"] == "ok"
    assert not refused(server, "GET", base)


def test_neither_a_branch_nor_a_neighbour_is_made_through_it(server: Served, linked: str) -> None:
    before = own_names(server)
    made = []
    for path, body in (
        (f"/v1/sessions/{linked}/branches", {}),
        ("/v1/sessions", {"beside": linked}),
    ):
        try:
            answer = server.call("POST", path, body)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            assert str(server.data_dir) not in text, text
        else:
            made += [one["id"] for one in (answer if isinstance(answer, list) else [answer])]
    for id in made:
        seen = run(server, id, "import os\nprint(os.path.exists('planted'), os.path.exists('/home/user/planted'))")
        assert "True" not in seen["text"]
        assert refused(server, "GET", f"/v1/sessions/{id}/files/planted")
        server.call("DELETE", f"/v1/sessions/{id}")
    assert own_names(server) == before


def test_a_restarted_kernel_is_shown_nothing_through_it(server: Served, linked: str) -> None:
    code = "import os\nassert not os.path.exists('planted') and not os.path.exists('/home/user/planted')"
    # Such a session may have lost its kernel for good: nobody makes one for what is no directory.
    if not refused(server, "POST", f"/v1/sessions/{linked}/restart", {}):
        refused(server, "POST", f"/v1/sessions/{linked}/cells", {"code": code})
    cells = server.call("GET", f"/v1/sessions/{linked}/cells")["cells"]
    assert "AssertionError" not in str(cells)


def test_a_link_in_place_of_the_branches_directory_leads_nowhere(server: Served) -> None:
    id = begin(server)
    before, sessions = own_names(server), {path.name for path in (server.data_dir / "sessions").iterdir()}
    code = "import os\nos.rename('/home/user.d', '/home/kept.d')\nos.symlink('../../..', '/home/user.d')\nkept = 1"
    assert run(server, id, code)["reason"] == "ok"
    assert refused(server, "POST", f"/v1/sessions/{id}/branches", {})
    assert own_names(server) == before
    assert {path.name for path in (server.data_dir / "sessions").iterdir()} == sessions
    assert run(server, id, "print(kept)")["text"] == "1\n"
    server.call("DELETE", f"/v1/sessions/{id}")


def test_a_refused_import_s_traceback_tells_nothing_of_the_server(server: Served) -> None:
    id = begin(server)
    done = run(
        server,
        id,
        "from kernelsvc.guest.forking.state_pickle import LostVariable\nLostVariable('pool', 'it was busy').submit(1)",
    )
    told = str(server.call("GET", f"/v1/sessions/{id}/cells/{done['id']}")) + done["text"]
    assert "it was busy" in told
    assert str(server.runtime_dir) not in told
    server.call("DELETE", f"/v1/sessions/{id}")
