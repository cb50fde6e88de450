"""Size of the web console's first page, and its speed and memory in Chromium, beside their goals.

    python -m benchmarks.console

The page measures itself with its own clock: a screenshot or a driver's wait would add to the figures.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browsing import ConsolePage, chromium, run_cells
from served import serving

from kernelsvc.model import events as ev
from kernelsvc.model.hash_chain import Head, stamp
from kernelsvc.server.console import assets
from kernelsvc.store.keys import SigningKey

LINES = 100_000
CELLS, JUMPS = 10_000, 100
PRINTED = "for n in range(1_000_000): print('x' * 99)"  # 100 MB
FIRST_PAGE = ("index.html", "console.css", "main.js", "dom.js", "api.js", "sessions.js", "text.js", "icon.svg")
VERIFY = """async () => {
  const { verifyLog } = await import("/console/verify.js");
  const blob = await (await fetch("/console/benchmark-log")).blob();
  const began = performance.now();
  const found = await verifyLog(blob.stream(), {});
  return [performance.now() - began, found.result, found.entries, found.signed];
}"""

#: From the answer with the last cells to the first picture with the newest ones: their code, and one frame.
SHOWN = """async () => {
  const until = async (condition) => { while (!condition()) await new Promise(requestAnimationFrame); };
  await until(() => performance.getEntriesByName("cells-shown").length && document.querySelector("article .code span"));
  return performance.now() - performance.getEntriesByName("cells-known")[0].startTime;
}"""
JUMP = """async ([session, cells]) => {
  const times = [];
  for (const cell of cells) {
    const began = performance.now();
    location.hash = `#/s/${session}/c/${cell}`;
    const found = () => document.querySelector(`[data-cell="${cell}"]`)?.getBoundingClientRect();
    while (!found() || found().top < 0 || found().top > innerHeight) await new Promise(requestAnimationFrame);
    times.push(performance.now() - began);
    await new Promise((resolve) => setTimeout(resolve, 50));  // the reading of the cells in sight is another jump's
  }
  return times;
}"""
HEAP = "() => { gc(); return performance.memory.usedJSHeapSize / 1e6; }"


def signed_log() -> bytes:
    """A log of one session with this many entries, under a signature."""
    with tempfile.TemporaryDirectory() as home:
        key = SigningKey.load_or_create(Path(home))
    begun = [ev.SessionStarted(principal="local", template="python3")]
    text = [ev.Stream(cell="c1", text=f"line {n}\n") for n in range(LINES - 2)]
    lines, head = stamp([*begun, *text], "s_1", Head(), "2026-01-01T00:00:00.000000Z")
    end = key.sign_head("s_1", head)
    last, _ = stamp([end], "s_1", head, "2026-01-01T00:00:01.000000Z")
    return b"\n".join([*lines, *last]) + b"\n"


def report(what: str, value: float, unit: str, goal: float) -> None:
    """Print one figure beside its goal."""
    print(f"{what:<58} {value:>9.1f} {unit:<3} goal {goal:g}  {'ok' if value <= goal else 'MISSED'}", flush=True)


def verification(view: ConsolePage) -> None:
    """A log of 100,000 entries, verified in the page."""
    log = signed_log()
    page = view.open("/")
    page.get_by_role("heading", name="Sessions").wait_for()
    page.route("**/benchmark-log", lambda route: route.fulfill(body=log, content_type="application/x-ndjson"))
    ms, result, entries, signed = page.evaluate(VERIFY)
    assert (result, entries, signed) == ("not_proven", LINES, LINES - 1), (result, entries, signed)
    report("100,000 entries verified in the page", ms / 1000, "s", 3)


def long_notebook(view: ConsolePage) -> None:
    """The first view of a session with 10,000 cells, and jumps in it."""
    session = run_cells(view.served)
    cells: list[str] = []
    for _ in range(CELLS // 500):
        batch = {"cells": [{"code": f"x = {n}"} for n in range(500)]}
        ran = view.served.call("POST", f"/v1/sessions/{session}/cells", batch, timeout=600)
        cells += [cell["id"] for cell in ran]
    page = view.open(f"/s/{session}")
    report("10,000 cells, first view after the last byte", page.evaluate(SHOWN), "ms", 300)
    chosen = random.Random(7).sample(cells, JUMPS)
    times = page.evaluate(JUMP, [session, chosen])
    report(f"10,000 cells, jump, p95 of {JUMPS}", statistics.quantiles(times, n=20)[-1], "ms", 50)


def long_print(view: ConsolePage) -> None:
    """The memory of a page that sees a cell print 100 MB."""
    session = run_cells(view.served, "pass")
    page = view.open(f"/s/{session}")
    page.get_by_text("● live").wait_for()
    before = page.evaluate(HEAP)
    view.served.call("POST", f"/v1/sessions/{session}/cells", {"code": PRINTED}, timeout=600)
    page.get_by_role("article", name="Cell 2, ok").wait_for(timeout=600_000)
    report("a print of 100 MB, memory of the page", page.evaluate(HEAP) - before, "MB", 80)


def main() -> None:
    """Measure everything."""
    sent = sum(len(found.compressed) for name in FIRST_PAGE if (found := assets.load_file(name)))
    report("first page, compressed", sent / 1000, "KB", 45)
    with (
        tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as home,
        serving(Path(home)) as served,
        chromium() as browser,
    ):
        for measure in (verification, long_notebook, long_print):
            view = ConsolePage(browser, served)
            measure(view)
            view.context.close()


if __name__ == "__main__":
    main()
