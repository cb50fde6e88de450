"""A notebook as HTML or as a Python script, by nbconvert in a process of its own.

nbconvert takes a second to import and holds the interpreter while it works, so
it runs in a child that is started for one conversion: the event loop does not
stall, and no memory stays behind. The child gets the notebook on stdin and no
environment of the server's.

A notebook's outputs were made by untrusted code. ``html_export`` cleans each
part of the page, *and* the page carries a content security policy that lets no
script run and nothing be loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Literal

from kernelsvc.errors import Internal, Timeout

Format = Literal["html", "py"]

#: Seconds that one conversion may take.
SECONDS = 120.0


def _command(format: Format) -> list[str]:
    return [sys.executable, "-I", "-m", "kernelsvc.store.convert", format]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ", "SYSTEMROOT") if name in os.environ}
    return {**kept, "JUPYTER_PREFER_ENV_PATH": "1", "HOME": "/nonexistent", "PYTHONUTF8": "1"}


async def convert(notebook: bytes, format: Format) -> bytes:
    """Convert ``.ipynb`` bytes. Safe to cancel: the child is ended.

    Raises:
        Timeout: it took too long.
        Internal: nbconvert could not do it.
    """
    child = await asyncio.create_subprocess_exec(
        *_command(format),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
    )
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await child.communicate(notebook)
    except TimeoutError:
        raise Timeout(f"Converting the notebook took longer than {SECONDS:g} s; export it as ipynb instead.") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _result(child.returncode, out, err, format)


def convert_now(notebook: bytes, format: Format) -> bytes:
    """``convert`` where there is no event loop.

    Raises:
        Timeout: it took too long.
        Internal: nbconvert could not do it.
    """
    try:
        done = subprocess.run(
            _command(format), input=notebook, capture_output=True, env=_environment(), timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Timeout(f"Converting the notebook took longer than {SECONDS:g} s; export it as ipynb instead.") from None
    return _result(done.returncode, done.stdout, done.stderr, format)


def _result(status: int | None, out: bytes, err: bytes, format: Format) -> bytes:
    if status != 0:
        last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise Internal(f"The notebook could not be converted to {format}; export it as ipynb.", reason=last[0][:500])
    return out


def to_script(notebook: bytes) -> str:
    """A Python script, magics translated. Imports nbconvert: meant for the child."""
    import nbformat
    from nbconvert import PythonExporter, ScriptExporter

    nb = nbformat.reads(notebook.decode(), as_version=4)
    python = json.loads(notebook)["metadata"].get("language_info", {}).get("name") == "python"
    script, _ = (PythonExporter() if python else ScriptExporter()).from_notebook_node(nb)
    return str(script)


def _main() -> None:
    notebook = sys.stdin.buffer.read()
    if sys.argv[1] == "html":
        from kernelsvc.store.html_export import to_html

        text = to_html(notebook)
    else:
        text = to_script(notebook)
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    _main()
