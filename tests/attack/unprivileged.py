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
exec setpriv --reuid {uid} --regid {uid} --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""


def as_ordinary_user(command: list[str]) -> list[str]:
    """The command that runs ``command`` as user 65533, without any capability."""
    covers: list[str] = []
    for prefix in dict.fromkeys(os.path.realpath(p) for p in (sys.prefix, sys.base_prefix)):
        closed = _closed_above(prefix)
        if closed:
            covers += [closed, prefix]
    script = _SCRIPT.format(uid=UID)
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *covers, "--", *command]


def _closed_above(path: str) -> str | None:
    """The outermost directory above ``path`` that others may not enter."""
    for parent in reversed(Path(path).parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return str(parent)
    return None
