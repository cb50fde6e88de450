"""The cost of an encrypted data directory, beside one in clear, in turns in one run. Needs root and mkfs.ext4.

    python -m benchmarks.encryption [--rounds N] [--cells N] [--megabytes N]

Both directories are on one ext4, made in a file and mounted. Blocks of trivial cells alternate between the two servers,
and so do files that code writes, syncs and reads again after their pages have left the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.spans import TOKEN, server
from kernelsvc import Client
from kernelsvc.client.sync_client import Session

FILE = """
import os, time
data = os.urandom(1 << 20)
began = time.perf_counter()
with open("large", "wb") as file:
    for _ in range({megabytes}):
        file.write(data)
    file.flush()
    os.fsync(file.fileno())
written = time.perf_counter() - began
with open("large", "rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    while file.read(1 << 20):
        pass
print(written, time.perf_counter() - began)
"""


@contextlib.contextmanager
def disk(root: Path, megabytes: int) -> Iterator[Path]:
    """A mounted ext4 that can encrypt, in a file."""
    image, place = root / "disk.img", root / "disk"
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "encrypt", image], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        # Mounts of ended sessions may keep it busy for a moment.
        while subprocess.run(["umount", place], check=False, capture_output=True).returncode:
            time.sleep(0.5)


def settings_file(root: Path) -> Path:
    """Write settings with a new key."""
    key = root / "key"
    key.write_text(secrets.token_hex(64))
    key.chmod(0o600)
    path = root / "encrypted.toml"
    path.write_text(f"[encryption]\nkey_file = {json.dumps(str(key))}\n")
    return path


def trivial_cells(session: Session, count: int) -> list[float]:
    """The seconds of each of some cells."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        session.run("1+1")
        found.append(time.perf_counter() - began)
    return found


def report(what: str, found: dict[str, list[float]], scale: float, unit: str) -> None:
    """Print medians and their ratio."""
    clear, encrypted = (statistics.median(found[name]) * scale for name in ("clear", "encrypted"))
    print(f"{what:<34} clear {clear:8.3f} {unit}, encrypted {encrypted:8.3f} {unit}: {encrypted / clear:.2f}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each server")
    parser.add_argument("--cells", type=int, default=50, help="cells of a block")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the file")
    chosen = parser.parse_args()
    cells: dict[str, list[float]] = {"clear": [], "encrypted": []}
    writes: dict[str, list[float]] = {"clear": [], "encrypted": []}
    reads: dict[str, list[float]] = {"clear": [], "encrypted": []}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k", dir="/var/tmp")))
        place = stack.enter_context(disk(root, 8 * chosen.megabytes + 512))
        options = {"clear": [], "encrypted": ["--config", str(settings_file(root))]}
        sessions = {}
        for name, words in options.items():
            (place / name).mkdir()
            address, _ = stack.enter_context(server(place / name, *words))
            client = stack.enter_context(Client(address, TOKEN))
            sessions[name] = stack.enter_context(client.create_session())
            trivial_cells(sessions[name], chosen.cells)
        for number in range(chosen.rounds):
            # The order alternates, too.
            for name in sorted(sessions, reverse=bool(number % 2)):
                cells[name] += trivial_cells(sessions[name], chosen.cells)
        for number in range(5):
            for name in sorted(sessions, reverse=bool(number % 2)):
                ran = sessions[name].run(FILE.format(megabytes=chosen.megabytes))
                written, read = map(float, ran.text.split())
                writes[name].append(written)
                reads[name].append(read)
    report("trivial cell, p50", cells, 1000, "ms")
    report(f"a file of {chosen.megabytes} MB, write and fsync", writes, 1, "s ")
    report(f"a file of {chosen.megabytes} MB, read", reads, 1, "s ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
