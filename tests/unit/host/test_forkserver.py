"""The guest package that a fork server imports."""

import py_compile
import subprocess
import sys
from pathlib import Path

from kernelsvc.guest import wire_frames
from kernelsvc.host.forkserver import install_guest

_IMPORT = "import sys; sys.path.insert(0, sys.argv[1]); from kernelsvc.guest import wire_frames as m; print(m.__file__)"


def test_the_copy_of_the_guest_is_imported_from_its_compiled_modules(tmp_path: Path) -> None:
    compiled = py_compile.compile(wire_frames.__file__, doraise=True)
    assert compiled
    beside = Path(f"{compiled}.12345")
    beside.write_bytes(b"of a process that is just writing")
    try:
        guest = install_guest(tmp_path)
    finally:
        beside.unlink()
    argv = [sys.executable, "-B", "-P", "-v", "-c", _IMPORT, str(guest)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    copy = guest / "kernelsvc/guest/wire_frames.py"
    assert done.stdout.strip() == str(copy)
    assert f"code object from '{copy.parent}/__pycache__/{Path(compiled).name}'" in done.stderr
    assert not list(guest.rglob("*.pyc.*"))
