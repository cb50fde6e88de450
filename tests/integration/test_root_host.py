"""A kernel host that is root and a server that is not: sessions' files stay the server's."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hosted import Bench, bench

from kernelsvc.errors import Forbidden
from kernelsvc.host.daemon import _check_may_name_programs, _check_owner
from kernelsvc.sandbox.uid_pool import UIDS

SERVER = 65_533

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can give each session a user id"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[Bench]:
    async with bench("required") as made:
        yield made


@pytest.fixture
def files() -> Iterator[Path]:
    """A directory that belongs to a server that is not root, with a file in it."""
    with tempfile.TemporaryDirectory() as base:
        place = Path(base, "user")
        place.mkdir(mode=0o700)
        (place / "uploaded.txt").write_text("from the server")
        (place / "uploaded.txt").chmod(0o600)
        for path in (Path(base), place, place / "uploaded.txt"):
            os.chown(path, SERVER, SERVER)
        yield place


async def test_what_either_makes_the_other_can_read_and_change(host: Bench, files: Path) -> None:
    one = await host.start(workdir=str(files), family=str(files.parent))
    said = await one.run(
        "import os\nprint(open('uploaded.txt').read(), os.stat('.').st_uid == os.getuid())\n"
        "open('made.txt', 'w').write('by the session'); os.chmod('made.txt', 0o600)\n"
        "os.mkdir('d'); open('uploaded.txt', 'a').write(', and more')\nprint(os.getuid())"
    )
    assert said.split("\n")[0] == "from the server True"
    assert int(said.split()[-1]) in UIDS
    for name in ("made.txt", "d", "uploaded.txt"):
        assert (files / name).stat().st_uid == SERVER
    assert (files / "uploaded.txt").read_text() == "from the server, and more"
    await one.kernel.end()


async def test_what_is_nobodys_stays_so(host: Bench, files: Path) -> None:
    secret = files / "root.txt"
    secret.write_text("root's")
    secret.chmod(0o600)
    one = await host.start(workdir=str(files))
    said = await one.run(
        "import os\nprint(os.stat('root.txt').st_uid)\n"
        "try: print(open('root.txt').read())\nexcept PermissionError: print('refused')"
    )
    assert said.split() == ["65534", "refused"]
    await one.kernel.end()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


async def test_roots_own_directory_is_given_to_the_session(host: Bench) -> None:
    one = await host.start()
    uid = int(await one.run("import os; print(os.getuid())"))
    assert Path(one.request.workdir).stat().st_uid == uid
    await one.kernel.end()


async def test_a_server_may_only_name_what_is_its_own(files: Path) -> None:
    _check_owner(SERVER, [str(files)])
    with pytest.raises(Forbidden):
        _check_owner(SERVER, [str(files), "/etc"])


async def test_a_server_that_is_not_root_names_no_program_that_would_run_as_root() -> None:
    _check_may_name_programs(0)
    with pytest.raises(Forbidden, match="host's settings"):
        _check_may_name_programs(SERVER)
