"""Change the environment variables and the working directory of cells, between two cells.

The values are in no cell's code, so neither in the log nor in a notebook.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from IPython.core.getipython import get_ipython

from kernelsvc.guest.e2b import charts as e2b_charts
from kernelsvc.guest.e2b import images as e2b_images
from kernelsvc.guest.private_modules import current_directory, os


def _install_formatters() -> None:
    """Install the formatters that an environment variable enables. A pooled kernel gets its environment only now."""
    shell = get_ipython()
    if shell is not None and e2b_charts.wanted() and e2b_charts.CHART not in shell.display_formatter.formatters:
        e2b_charts.install(shell)
        e2b_images.install()


@contextlib.contextmanager
def during(environ: Mapping[str, Any]) -> Iterator[None]:
    """Return a context manager that sets environment variables for one cell, such as those of its trace.

    If the cell's code uses OpenTelemetry, its spans have the trace's parent, too.
    """
    names = {str(name): str(value) for name, value in environ.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    detach = _attach({name.lower(): value for name, value in names.items()})
    try:
        yield
    finally:
        detach()
        for name, value in before.items():
            if os.environ.get(name) != names[name]:
                continue  # The cell's own value stays.
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _attach(carrier: dict[str, str]) -> Callable[[], object]:
    """Make the trace the current context of OpenTelemetry, if code has imported it. Return what undoes it."""
    if "opentelemetry.trace" not in sys.modules:
        return bool
    try:
        context, propagate = (importlib.import_module(f"opentelemetry.{name}") for name in ("context", "propagate"))
        return functools.partial(context.detach, context.attach(propagate.extract(carrier)))
    except Exception:  # The modules are the cell's, which may have replaced them.
        pass
    return bool


def change(environ: Mapping[str, Any], directory: str | None = None) -> dict[str, Any]:
    """Set environment variables and the working directory.

    Args:
        environ: Values by name. None removes a variable.
        directory: The new working directory. None keeps the present one.

    Returns:
        The content of a reply. ``before`` has the previous values, with which a second call undoes this one.
    """
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as error:
            return {"status": "error", "ename": "OSError", "evalue": f"{directory}: {error.strerror}", "traceback": []}
    before = {name: os.environ.get(name) for name in environ}
    for name, value in environ.items():
        if value is None:
            # Also calls unsetenv(3), so that subprocesses and C code see the change.
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(value)
    _install_formatters()
    return {"status": "ok", "before": before, "directory": current_directory()}
