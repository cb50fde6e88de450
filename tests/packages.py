"""A wheel that tests install, written without a build tool."""

from __future__ import annotations

import zipfile
from pathlib import Path


def write_wheel(name: str, directory: Path) -> Path:
    """Write a package with one module and one program."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "def answer():\n    print('forty-two')\n    return 42\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/entry_points.txt", f"[console_scripts]\nsay-{name} = {name}:answer\n")
        wheel.writestr(f"{about}/RECORD", "".join(f"{each},,\n" for each in wheel.namelist()))
    return path
