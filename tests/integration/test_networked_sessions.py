"""Sessions with a network: installed packages have a place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from served import QUICK, Served

from kernelsvc import Client
from packages import write_wheel


def test_installed_packages_belong_to_the_session(short_tmp: Path) -> None:
    """They are found by the kernel and by programs, in branches, after an undo and after hibernation."""
    wheel = write_wheel("madehere", short_tmp)
    check = "import madehere; from importlib.metadata import version; print(madehere.answer(), version('madehere'))"
    fresh = f'!{os.path.basename(sys.executable)} -c "{check}"'
    served = Served(short_tmp / "networked", "--limits-network", "host", env=QUICK).start()
    try:
        with Client(served.url, served.token) as client, client.create_session() as session:
            missing = session.run("import madehere")
            assert missing.error is not None
            assert missing.error.ename == "ModuleNotFoundError"
            session.upload(wheel, wheel.name)
            installed = session.run(f"!pip install --quiet --no-index --disable-pip-version-check ./{wheel.name}")
            assert installed.ok, installed.text
            assert session.run(check).text.split() == ["forty-two", "42", "1.0"]
            assert session.run("!say-madehere").text.startswith("forty-two")
            place = session.run("import os; print(os.path.relpath(madehere.__file__, os.environ['HOME']))").text
            assert place.startswith(".local/lib/python")
            (branch,) = session.branch()
            session.run("del __import__('sys').modules['madehere']; __import__('shutil').rmtree('.local')")
            for code in (check, fresh):
                assert branch.run(code).text.split() == ["forty-two", "42", "1.0"]
            own = branch.run("print(madehere.__file__.startswith(os.environ['HOME']) or madehere.__file__)")
            assert own.ok, own.text
            branch.hibernate()
            for code in (check, fresh):
                assert branch.run(code).text.split() == ["forty-two", "42", "1.0"]
            branch.close()
    finally:
        served.stop()
