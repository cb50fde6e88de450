"""Convert a notebook to HTML or to a script, by nbconvert in its own process.

nbconvert takes a second to import and blocks the interpreter while it works. So each conversion runs in a new child
process: the event loop does not stall, and the server's memory does not grow. The child gets the notebook on stdin and
none of the server's environment.

A notebook's outputs come from untrusted code. ``html_export`` cleans each part of the page. In addition, the page has a
content security policy (CSP Level 3) under which no script runs and nothing is loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Literal

from kernelsvc.errors import Internal, Timeout

Format = Literal["html", "py"]

#: Seconds that one conversion may take.
SECONDS = 120.0


def _command(format: Format) -> list[str]:
    # -I: the child ignores PYTHON* variables, the user's site directory and the working directory.
    return [sys.executable, "-I", "-m", "kernelsvc.store.convert", format]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ", "SYSTEMROOT") if name in os.environ}
    return {**kept, "JUPYTER_PREFER_ENV_PATH": "1", "HOME": "/nonexistent", "PYTHONUTF8": "1"}


async def convert(notebook: bytes, format: Format) -> bytes:
    """Convert ``.ipynb`` bytes. Safe to cancel: the child is killed.

    Raises:
        Timeout: It took longer than ``SECONDS``.
        Internal: nbconvert failed.
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
        raise Timeout(f"Converting the notebook took longer than {SECONDS:g} s. Export it as ipynb instead.") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _result(child.returncode, out, err, format)


def _result(status: int | None, out: bytes, err: bytes, format: Format) -> bytes:
    if status != 0:
        last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise Internal(f"The notebook could not be converted to {format}. Export it as ipynb.", reason=last[0][:500])
    return out


def to_script(notebook: bytes) -> str:
    """Return the notebook as a script with translated magics. Imports nbconvert, so call it in the child."""
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
