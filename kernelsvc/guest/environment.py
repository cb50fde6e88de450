"""Where cells run and what they find in the environment, changed between two cells.

The values stand in no cell's code, and so neither in the log nor in a notebook.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from IPython.core.getipython import get_ipython

from kernelsvc.guest import e2b_charts


def _fit_out() -> None:
    """What the environment switches on: a kernel that was ready before anybody asked hears of it only now."""
    shell = get_ipython()
    if shell is not None and e2b_charts.wanted() and e2b_charts.CHART not in shell.display_formatter.formatters:
        e2b_charts.install(shell)


def change(environ: Mapping[str, Any], directory: str | None = None) -> dict[str, Any]:
    """Set variables of the environment, and the working directory.

    Args:
        environ: by name; None removes one.
        directory: where to go; None stays.

    Returns:
        the content of a reply, with what the variables were ``before``: what undoes this.
    """
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as error:
            return {"status": "error", "ename": "OSError", "evalue": f"{directory}: {error.strerror}", "traceback": []}
    before = {name: os.environ.get(name) for name in environ}
    for name, value in environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(value)
    _fit_out()
    return {"status": "ok", "before": before, "directory": os.getcwd()}
