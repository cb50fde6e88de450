"""Run a program as an ordinary user, from a test that is root.

The interpreter of a test machine often lies below a directory that only root may
enter (``/root/.pyenv``). In a mount namespace of the program's own such a
directory is covered by an empty one that holds just the interpreter's prefix, so
nothing has to be copied and nobody's permissions are changed.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

UID = 65_533

_SCRIPT = """
set -e
while [ "$1" != -- ]; do
  closed=$1 prefix=$2; shift 2
  hold=$(mktemp -d)
  mount --bind "$prefix" "$hold"
  mount -t tmpfs -o mode=755 none "$closed"
  mkdir -p "$prefix"
  mount --move "$hold" "$prefix"
  rmdir "$hold"
done
shift
exec "$@"
"""


def as_ordinary_user(command: list[str]) -> list[str]:
    """The command that runs ``command`` as user 65533, without any capability."""
    user = ["--reuid", f"{UID}", "--regid", f"{UID}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
    return with_readable_interpreter(["setpriv", *user, *command])


def with_readable_interpreter(command: list[str]) -> list[str]:
    """The command that runs ``command`` in a mount namespace of its own where every user can run the interpreter."""
    covers: list[str] = []
    for prefix in dict.fromkeys(os.path.realpath(p) for p in (sys.prefix, sys.base_prefix)):
        closed = _closed_above(prefix)
        if closed:
            covers += [closed, prefix]
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", *covers, "--", *command]


def _closed_above(path: str) -> str | None:
    """The outermost directory above ``path`` that others may not enter."""
    for parent in reversed(Path(path).parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return str(parent)
    return None
