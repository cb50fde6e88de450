"""The session's home directory and ``__main__``, with the server's runtime directory where no session can write."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served

import kernelsvc
from kernelsvc import Client
from kernelsvc.client.sync_client import Session


@pytest.fixture(scope="module")
def below_run(short_tmp: Path) -> Iterator[Served]:
    """A server whose runtime directory is below /run, as with systemd's RuntimeDirectory= and XDG_RUNTIME_DIR."""
    base = Path("/run") if os.access("/run", os.W_OK) else Path(os.environ.get("XDG_RUNTIME_DIR", "/run"))
    if not os.access(base, os.W_OK):
        pytest.skip("no writable directory below /run")
    runtime = Path(tempfile.mkdtemp(prefix="k", dir=base))
    # The later one of two arguments counts.
    instance = Served(short_tmp / "below-run", "--runtime-dir", str(runtime), preload=True).start()
    try:
        yield instance
    finally:
        instance.stop()
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(scope="module")
def session(below_run: Served) -> Iterator[Session]:
    with Client(below_run.url, below_run.token) as client, client.create_session() as session:
        yield session


_PLACES = {
    "ipython": "get_ipython().ipython_dir",
    "profile": "get_ipython().profile_dir.startup_dir",
    "matplotlib-config": "__import__('matplotlib').get_configdir()",
    "matplotlib-cache": "__import__('matplotlib').get_cachedir()",
    "jedi": "__import__('jedi').settings.cache_directory",
    "parso": "__import__('parso.cache').cache._default_cache_path",
    "site": "__import__('site').getuserbase()",
}


@pytest.mark.parametrize("place", _PLACES)
def test_a_librarys_directory_is_below_the_home(session: Session, place: str) -> None:
    cell = session.run(f"import os; print(os.path.relpath({_PLACES[place]}, os.environ['HOME']))")
    assert cell.ok, cell.text
    assert cell.text.startswith("."), cell.text
    assert not cell.text.startswith(".."), cell.text


_SHOWS_PATHS = {
    "modules": "import json, sys, numpy; print(sys.executable, sys.path, sys.prefix, numpy.__file__, json.__file__)",
    "programs": "!ps axww -o args; echo $PATH; cat /proc/self/environ /proc/1/cmdline",
    "python": "!python -c 'import sys, json; print(sys.path, sys.executable, sys.base_prefix, json.__file__)'",
    "help": "import json; help(json.dumps)\njson.dumps?\n",
    "traceback": "import json; json.loads('no')",
    "pip": "!pip install numpy; pip3 --version",
    "thread": "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
    "variables": "print(sorted(__import__('os').environ.items()))",
}


@pytest.mark.parametrize("cell", _SHOWS_PATHS)
def test_a_session_shows_no_path_of_the_machine(session: Session, below_run: Served, cell: str) -> None:
    if "filesystem" not in below_run.call("GET", "/v1/info")["sandbox"]["enforced"]:
        pytest.skip("sessions have the machine's filesystem here: no mount namespaces")
    shown = session.run(_SHOWS_PATHS[cell]).text
    prefixes = {sys.prefix, sys.base_prefix} - {"/usr", "/usr/local"}
    for path in (*prefixes, below_run.args[1], str(Path(kernelsvc.__file__).parent)):
        assert path not in shown


_CELLS = {
    "cd": ("%cd /tmp\n%pushd ~\n%popd\n%bookmark here\n%cd -b here\n%cd ~", "/home/user"),
    "store": ("kept = 6 * 7\n%store kept\ndel kept\n%store -r kept\nprint(kept)", "42"),
    "font-cache": (
        "import matplotlib as mpl, shutil, matplotlib.font_manager as fm\nshutil.rmtree(mpl.get_cachedir())\n"
        "fm._load_fontmanager(try_read_cache=False)\nprint([name[:8] for name in os.listdir(mpl.get_cachedir())])",
        "['fontlist']",
    ),
    "spawn": (
        "import math, multiprocessing\nwith multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "    print(pool.map(math.sqrt, [1, 4]))",
        "[1.0, 2.0]",
    ),
    "forkserver": (
        "import math, multiprocessing\nwith multiprocessing.get_context('forkserver').Pool(1) as pool:\n"
        "    print(pool.map(math.sqrt, [1, 4]))",
        "[1.0, 2.0]",
    ),
    "the-path-of-openais-containers": ("open('/mnt/data/a', 'w').close(); print(os.path.exists('a'))", "True"),
    "after-a-reset": ("%reset -f\nimport __main__; print(__main__.__spec__, __main__.__package__)", "None None"),
}


@pytest.mark.parametrize("name", _CELLS)
def test_what_needs_a_real_home_or_main(session: Session, name: str) -> None:
    code, last = _CELLS[name]
    cell = session.run("import os\n" + code, timeout=60)
    assert cell.ok, cell.text
    assert cell.text.rstrip().endswith(last), cell.text
    assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.text


def test_tab_completion_of_a_large_module(session: Session) -> None:
    session.run("import pandas as pd")
    assert "read_csv" in session.complete("pd.read_")["matches"]


def test_a_branch_has_a_home_of_its_own(session: Session) -> None:
    (branch,) = session.branch()
    code = "import os, site; print(site.getuserbase() == os.path.expanduser('~/.local'), os.getcwd() != '/home/user')"
    assert branch.run(code).text.split() == ["True", "True"]
    branch.close()


def test_a_session_that_uses_none_of_it_has_an_empty_home(below_run: Served) -> None:
    with Client(below_run.url, below_run.token) as client, client.create_session() as session:
        assert session.run("import os; x = 1; print(os.listdir(os.path.expanduser('~')))").text.strip() == "[]"
