"""Filesystems that fill, fail, become read-only or lose what was not synced, at a server's data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

#: linux/fs.h: ``FS_IOC_SHUTDOWN``. With ``_NO_LOG_FLUSH`` a filesystem stops where it stands: what is in the page cache
#: or in its journal's memory never reaches the disk. It is what xfstests uses for a loss of power.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


def why_no_disk() -> str | None:
    """Why this machine can't make an ext4 filesystem in a file; None if it can."""
    if os.geteuid() != 0:
        return "only root can mount a filesystem"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not here (e2fsprogs)"
    if not os.path.exists("/dev/loop-control"):
        return "this machine has no loop devices"
    return None


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


class SmallDisk:
    """A filesystem of a few MiB."""

    def __init__(self, path: Path, size: str = "12m") -> None:
        self.path = path
        path.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "small", path)

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.path / "fill").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Make room again."""
        (self.path / "fill").unlink()

    def close(self) -> None:
        """Unmount."""
        _run("umount", "-l", self.path)


class RealDisk:
    """An ext4 filesystem on a block device (a file through ``loop``), which can be made to fail as hardware does.

    Args:
        path: where it is mounted.
        image: the file that holds it; must not lie below ``path``.
    """

    def __init__(self, path: Path, image: Path, *, mib: int = 96) -> None:
        self.path, self.image = path, image
        path.mkdir(parents=True)
        with image.open("wb") as file:
            file.truncate(mib << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        self.mount()

    def mount(self) -> None:
        """Mount it, which replays its journal."""
        _run("mount", "-o", "loop,errors=remount-ro", self.image, self.path)

    def lose_power(self) -> None:
        """Nothing that was not synced is there after the next mount. From now on everything fails (EIO)."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def device(self) -> str:
        """The block device's name."""
        done = subprocess.run(["findmnt", "-no", "SOURCE", self.path], check=True, capture_output=True, text=True)
        return done.stdout.strip().rsplit("/", 1)[-1]

    def become_read_only(self) -> None:
        """As ext4 does when it finds itself damaged; files that are open for writing are no hindrance."""
        Path(f"/sys/fs/ext4/{self.device()}/trigger_fs_error").write_text("a test\n")

    def power_back(self) -> None:
        """Mount what had reached the device when the power went.

        A copy of it: some process of somebody's may have been born meanwhile, with a mount
        namespace that holds the old one.
        """
        _run("umount", "-l", self.path)
        old, self.image = self.image, self.image.with_name(f"{self.image.name}+")
        _run("cp", "--sparse=always", old, self.image)
        old.unlink()
        self.mount()

    def close(self) -> None:
        """Unmount and forget."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("umount", "-l", self.path)
