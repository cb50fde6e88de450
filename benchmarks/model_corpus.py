"""The answers to the cells in ``benchmarks.corpus``: tokens, facts, pictures, paths of the server, times.

    python -m benchmarks.model_corpus [--python ENVIRONMENT/bin/python] [--stock] [--peers PACKAGES] [--cells]
                                      [GROUP ...]

The environment needs ipykernel, numpy, pandas, matplotlib, scipy, scikit-learn, seaborn, plotly, nbformat, jinja2,
altair, polars, sympy, statsmodels, ipywidgets, tqdm, rich, requests and Pillow. Cells whose packages are missing are
left out, and named. Tokens are those of o200k_base, if tiktoken has its table, else an estimate. Exit status 1: a bound
is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import stock_kernel
from benchmarks.corpus import GROUPS, LEAK, CorpusCell, group
from benchmarks.processes import Server, free_port
from kernelsvc import Client
from kernelsvc.integrations import Tools
from kernelsvc.model.view.estimate import estimate
from kernelsvc.tools import ToolResult

TOKEN = "benchmark-token-of-the-corpus"
#: Of the whole corpus.
MOST_TOKENS, MOST_P90, MOST_LARGEST = 60_000, 1200, 4200
_NOT_SENT = re.compile(r"^\[picture (\d+), not sent", re.MULTILINE)


def _structured_first(result: ToolResult) -> tuple[str, int]:
    alone = result.facts is not None and not result.failed
    return (json.dumps(result.facts), 0) if alone else (result.text, len(result.pictures))


def _both(result: ToolResult) -> tuple[str, int]:
    facts = "" if result.facts is None else f"\n{json.dumps(result.facts)}"
    return result.text + facts, len(result.pictures)


#: The text and the number of pictures of a result that a model gets through MCP, by the rule of its host. The first
#: rule is that of Claude Code and Codex by their issues, the second one that of kimi-code.
HOSTS: Mapping[str, Callable[[ToolResult], tuple[str, int]]] = {
    "structured first": _structured_first,
    "content first": lambda result: (result.text, len(result.pictures)),
    "both": _both,
}


@dataclass(frozen=True)
class CellAnswer:
    """The answer to one cell.

    Attributes:
        pictures: sent, or read by number.
        missing: facts that it lacks.
        milliseconds: of the call, with the run of the cell.
    """

    cell: CorpusCell
    text: str
    pictures: int
    missing: list[str]
    milliseconds: float

    @property
    def leaks(self) -> list[str]:
        """Paths of the server in it."""
        return LEAK.findall(self.text)


def answers(tools: Tools, cells: Iterable[CorpusCell]) -> Iterator[CellAnswer]:
    """Run cells in the tools' session, and yield the answer to each but those that only prepare data."""
    for cell in cells:
        arguments = {"code": cell.code.strip("\n")} | ({"seconds": cell.seconds} if cell.seconds else {})
        started = time.perf_counter()
        result = tools.call("run_code", arguments)
        took = (time.perf_counter() - started) * 1000
        later = [tools.call("read_output", {"picture": int(each)}) for each in _NOT_SENT.findall(result.text)]
        pictures = len(result.pictures) + sum(len(each.pictures) for each in later)
        if not cell.setup:
            yield CellAnswer(cell, result.text, pictures, cell.missing(result.text, pictures), took)


def token_counter() -> tuple[str, Callable[[str], int]]:
    """Return the name of what counts tokens here, and the function."""
    try:
        import tiktoken

        encoding = tiktoken.get_encoding("o200k_base")
    except Exception:  # It is not installed, or would have to load its table.
        return "estimate", lambda text: round(estimate(text))
    return "o200k_base", lambda text: len(encoding.encode(text, disallowed_special=()))


@dataclass(frozen=True)
class Totals:
    """The figures of many answers."""

    tokens: int
    p90: int
    largest: int
    facts: int
    all_facts: int
    pictures: int
    all_pictures: int
    leaks: list[str]
    missing: dict[str, list[str]]


def totals(found: Iterable[CellAnswer], count: Callable[[str], int]) -> Totals:
    """Return the figures of some answers."""
    found = list(found)
    sizes = sorted(count(each.text) for each in found)
    drawn = [each for each in found if each.cell.pictures]
    return Totals(
        tokens=sum(sizes),
        p90=sizes[int(len(sizes) * 0.9)],
        largest=sizes[-1],
        facts=sum(each.cell.fact_count - len(each.missing) for each in found),
        all_facts=sum(each.cell.fact_count for each in found),
        pictures=sum(min(each.pictures, each.cell.pictures) for each in drawn),
        all_pictures=sum(each.cell.pictures for each in drawn),
        leaks=[f"{each.cell.name}: {each.leaks[0]}" for each in found if each.leaks],
        missing={each.cell.name: each.missing for each in found if each.missing},
    )


def main() -> int:
    """Print a table. Return 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("groups", nargs="*", default=GROUPS, help="groups of cells. Default: all")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the sessions' environment")
    parser.add_argument("--stock", action="store_true", help="run the cells in a plain ipykernel too")
    parser.add_argument("--peers", type=Path, help="packages whose texts are compared: see benchmarks.stock_kernel")
    parser.add_argument("--cells", action="store_true", help="print a row for each cell")
    args = parser.parse_args()
    name, count = token_counter()
    found: list[CellAnswer] = []
    print(f"{'tokens (' + name + ')':34}{'cells':>7}{'tokens':>9}{'facts':>11}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as directory, _server(Path(directory), args.python) as url:
        missing = _missing_packages(url)
        for each in args.groups:
            cells = [cell for cell in group(each) if not missing.intersection(cell.needs)]
            with Tools(url, TOKEN, session=each) as tools:
                some = list(answers(tools, cells))
            found += some
            _print(each, some, count, each_cell=args.cells)
        if args.stock or args.peers:
            for peer, some in _peers(args.python, Path(directory), args.groups, missing, args.peers).items():
                _print(peer, some, count)
                part = totals(some, count)
                print(f"{'':34}p90 {part.p90}, largest {part.largest}, paths in {len(part.leaks)} answers")
    result = totals(found, count)
    _print("all", found, count)
    print(f"p90 {result.p90}, largest {result.largest}, pictures {result.pictures} of {result.all_pictures}")
    print(f"packages that are missing: {', '.join(sorted(missing)) or 'none'}")
    for cell, facts in result.missing.items():
        print(f"missing in {cell}: {facts}")
    for leak in result.leaks:
        print(f"path of the server in {leak}")
    sizes_hold = result.tokens <= MOST_TOKENS and result.p90 <= MOST_P90 and result.largest <= MOST_LARGEST
    complete = not result.missing and result.pictures == result.all_pictures and not result.leaks
    # The bounds on sizes are those of the whole corpus.
    return 0 if complete and (sizes_hold or list(args.groups) != list(GROUPS)) else 1


def _print(name: str, found: list[CellAnswer], count: Callable[[str], int], *, each_cell: bool = False) -> None:
    for each in found if each_cell else ():
        print(f"  {each.cell.name:32}{'':7}{count(each.text):9,}{'':11}{each.milliseconds / 1000:9.2f}")
    part = totals(found, count)
    seconds = sum(each.milliseconds for each in found) / 1000
    facts = f"{part.facts}/{part.all_facts}"
    print(f"{name:34}{len(found):7}{part.tokens:9,}{facts:>11}{seconds:9.1f}", flush=True)


@contextmanager
def _server(directory: Path, python: str) -> Iterator[str]:
    """Start a server with this environment, and yield its address."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    where = ["--data-dir", str(directory / "data"), "--runtime-dir", str(directory / "run")]
    command = [sys.executable, "-m", "kernelsvc", "serve", "--port", str(port), "--token", TOKEN, *where]
    template = {"python": python, "preload": ["numpy", "pandas", "matplotlib.pyplot"]}
    env = {"KERNELSVC_TEMPLATES": json.dumps({"python3": template})}
    server = Server(command, f"{url}/readyz", directory / "log", env)
    asyncio.run(server.start())
    try:
        yield url
    finally:
        asyncio.run(server.stop())


def _peers(
    python: str, directory: Path, groups: Iterable[str], missing: set[str], packages: Path | None
) -> dict[str, list[CellAnswer]]:
    """Run the cells in a plain ipykernel. Return the answers that each project makes of the same outputs."""
    readers = stock_kernel.readers(packages)
    found: dict[str, list[CellAnswer]] = {name: [] for name in readers}
    for each in groups:
        cells = [cell for cell in group(each) if not missing.intersection(cell.needs)]
        for cell, outputs, took in stock_kernel.outputs(python, directory / each, cells):
            for name, read in readers.items():
                text, pictures = read(outputs)
                found[name].append(CellAnswer(cell, text, pictures, cell.missing(text, pictures), took))
    return found


def _missing_packages(url: str) -> set[str]:
    needs = sorted({name for each in GROUPS for cell in group(each) for name in cell.needs})
    code = f"import importlib.util\nprint(*[n for n in {needs} if importlib.util.find_spec(n) is None])"
    with Client(url, TOKEN) as client, client.create_session() as session:
        return set(session.run(code).text.split())


if __name__ == "__main__":
    sys.exit(main())
