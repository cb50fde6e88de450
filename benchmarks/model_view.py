"""Times of the parts of a model's answer: a number with and without them, errors in both forms, a long output.

    python -m benchmarks.model_view

Prints the median time of a cell, in milliseconds, measured in the kernel's process without a server.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from kernelsvc.guest.ipython import ForkableKernel, make_kernel
from kernelsvc.guest.model_view import changes, values
from kernelsvc.model import events as ev
from kernelsvc.model.cell_fold import CellFold
from kernelsvc.model.view.cell_view import view_cell
from kernelsvc.model.view.request import ViewRequest

CELLS = {
    "1 + 1": "1 + 1",
    "1 / 0": "1 / 0",
    "KeyError in pandas": "df['b']",
    "recursion": "def f(n):\n    return f(n + 1) + 1\nf(0)",
    "data frame of 5,000 x 4": "df5000",
}
ROUNDS = 15


def main() -> None:
    """Print a table."""
    kernel = make_kernel()
    shell = kernel.shell
    shell._send = lambda *_: None
    setup = "import numpy, pandas, matplotlib.pyplot\ndf = pandas.DataFrame({'a': [1]})\n"
    shell.run_cell(setup + "df5000 = pandas.DataFrame(numpy.random.rand(5000, 4), columns=list('abcd')); 0")
    print(f"{'cell':28}{'for people':>12}{'for models':>12}  ms")
    for name, code in CELLS.items():
        times = [statistics.median(measured(kernel, code, for_model=asked)) for asked in (False, True)]
        print(f"{name:28}{times[0]:12.2f}{times[1]:12.2f}")
    space, hidden = shell.user_ns, shell.user_ns_hidden
    space.update({f"v{n}": n for n in range(50)})
    found = changes.Changes()
    found.begin(space, hidden)
    print(
        f"{'changes of 50 variables':40}{timed(lambda: (found.begin(space, hidden), found.end(space, hidden))):12.3f}"
    )
    lines = _folded("".join(f"{n} {n * n}\n" for n in range(70_000))[: 1 << 20])
    print(f"{'view of 1 MiB of lines':40}{timed(lambda: view_cell(lines, 1, 's', ViewRequest())):12.1f}")
    print(f"{'form of a number':40}{timed(lambda: values.form(2, {'text/plain': '2'})):12.4f}")


def _folded(text: str) -> CellFold:
    fold = CellFold()
    for event in (ev.CellQueued(cell="c", code="x"), ev.Stream(cell="c", name="stdout", text=text)):
        fold.feed(event)
    return fold


def measured(kernel: ForkableKernel, code: str, *, for_model: bool) -> Iterator[float]:
    """Yield the milliseconds of each run of a cell."""
    kernel.shell.for_model = for_model
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = kernel.shell.run_cell(code)
        if result.result is not None:
            kernel.shell.display_formatter.format(result.result)
        yield (time.perf_counter() - started) * 1000


def timed(call: object) -> float:
    """Return the median milliseconds of a function."""
    assert callable(call)
    found = []
    for _ in range(ROUNDS * 10):
        started = time.perf_counter()
        call()
        found.append((time.perf_counter() - started) * 1000)
    return statistics.median(found)


if __name__ == "__main__":
    main()
