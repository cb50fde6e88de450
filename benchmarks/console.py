"""Size of the web console's first page, and speed of its verification in Chromium, beside their goals.

    python -m benchmarks.console

The page measures itself with its own clock: a screenshot or a driver's wait would add to the figures.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browsing import ConsolePage, chromium
from served import serving

from kernelsvc.model import events as ev
from kernelsvc.model.hash_chain import Head, stamp
from kernelsvc.server.console import assets
from kernelsvc.store.keys import SigningKey

LINES = 100_000
FIRST_PAGE = ("index.html", "console.css", "main.js", "dom.js", "api.js", "sessions.js", "text.js", "icon.svg")
VERIFY = """async () => {
  const { verifyLog } = await import("/console/verify.js");
  const blob = await (await fetch("/console/benchmark-log")).blob();
  const began = performance.now();
  const found = await verifyLog(blob.stream(), {});
  return [performance.now() - began, found.result, found.entries, found.signed];
}"""


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


def main() -> None:
    """Measure everything."""
    sent = sum(len(found.compressed) for name in FIRST_PAGE if (found := assets.load_file(name)))
    report("first page, compressed", sent / 1000, "KB", 45)
    with (
        tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as home,
        serving(Path(home)) as served,
        chromium() as browser,
    ):
        view = ConsolePage(browser, served)
        verification(view)
        view.context.close()


if __name__ == "__main__":
    main()
