"""Make the disk of a small Debian with systemd, cgroup version 2 and this checkout installed.

Needs root, ``mmdebstrap``, ``mkfs.ext4`` and Debian's packages: from where this machine gets its
own, if it is a Debian, else from where mmdebstrap takes them by itself. The base system is kept in
a cache directory and made once; the checkout is installed anew each time.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SUITE = "bookworm"
#: Where a Debian names what it gets its packages from, Debian's own and nobody else's.
SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
PACKAGES = [
    *("systemd", "systemd-sysv", "dbus", "udev", "linux-image-cloud-amd64", "python3", "python3-venv"),
    *("e2fsprogs", "openssl", "curl", "procps", "util-linux", "bash"),
]
_UNIT = """
[Unit]
Description=checks of kernelsvc
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/opt/kernelsvc/bin/python /opt/src/tests/vm/guest_main.py
TimeoutStartSec=0
[Install]
WantedBy=multi-user.target
"""


def run(*command: str | Path) -> str:
    """Run a command and return what it said.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def sources() -> list[Path]:
    """This machine's own package sources, when they are those of the system to make; else none."""
    try:
        about = platform.freedesktop_os_release()
    except OSError:
        return []
    ours = about.get("ID") == "debian" and about.get("VERSION_CODENAME") == SUITE
    return [path for path in SOURCES if path.is_file() and path.read_text().strip()] if ours else []


def make_base(cache: Path) -> Path:
    """The base system's directory; made when it isn't there."""
    base = cache / f"{SUITE}-base"
    if not (base / "boot").is_dir():
        shutil.rmtree(base, ignore_errors=True)
        run("mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, base, *sources())
    return base


def install(root: Path) -> None:
    """Put the checkout and an environment with it into the system."""
    environment = root / "opt" / "kernelsvc"
    if not environment.exists():
        # The guest's Python has the host's version only by luck, so the guest's own makes the environment.
        run("chroot", root, "python3", "-m", "venv", "/opt/kernelsvc")
    source = root / "opt" / "src"
    shutil.rmtree(source, ignore_errors=True)
    for name in ("kernelsvc", "systemd", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source / name)
    wheels = root / "opt" / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    pip = ("pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source)
    ours = next(wheels.glob("kernelsvc-*.whl"))
    version = run("chroot", root, "python3", "-c", "import platform; print(platform.python_version())").strip()
    run(*pip, "download", "--only-binary=:all:", f"--python-version={version}", "--dest", wheels, ours)
    offline = ("/opt/kernelsvc/bin/pip", "install", "--quiet", "--no-index", "--find-links", "/opt/wheels")
    run("chroot", root, *offline, "--force-reinstall", "--no-deps", "kernelsvc")
    run("chroot", root, *offline, "kernelsvc")


def configure(root: Path) -> None:
    """Start the checks when the machine is up; nothing else on the serial line."""
    units = root / "etc" / "systemd" / "system"
    (units / "checks.service").write_text(_UNIT)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    for link, target in (
        (wants / "checks.service", "../checks.service"),
        (units / "serial-getty@ttyS0.service", "/dev/null"),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    # What takes seconds on a machine takes minutes on one that is emulated beside others.
    slow = root / "etc" / "systemd" / "system.conf.d" / "slow.conf"
    slow.parent.mkdir(exist_ok=True)
    slow.write_text("[Manager]\nDefaultTimeoutStartSec=900\n")
    (root / "etc" / "fstab").write_text("/dev/vda / ext4 rw,relatime 0 1\n")
    (root / "etc" / "hostname").write_text("vm\n")


def make_disk(cache: Path) -> Path:
    """The whole disk image, from what is cached and what is checked out now."""
    base = make_base(cache)
    install(base)
    configure(base)
    disk = cache / "disk.img"
    disk.unlink(missing_ok=True)
    with disk.open("wb") as f:
        f.truncate(3 << 30)
    run("mkfs.ext4", "-q", "-d", base, disk)
    return disk


def kernel_files(cache: Path) -> tuple[Path, Path]:
    """The guest's kernel and its initrd."""
    boot = cache / f"{SUITE}-base" / "boot"
    return next(boot.glob("vmlinuz-*")), next(boot.glob("initrd.img-*"))
