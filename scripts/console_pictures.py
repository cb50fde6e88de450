"""Make the pictures of docs/howto/console.md: a real server, a real session, Chromium.

    python scripts/console_pictures.py

Look at them before you commit them: nothing compares them with anything.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browsing import ConsolePage, chromium  # noqa: E402 - after the path
from served import serving  # noqa: E402

TARGET = ROOT / "docs" / "console"
COLOURS = 64
PLOT = """\
import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(5, 2))
ax.scatter(p.bill_length_mm, p.flipper_length_mm, s=6)
ax.set(xlabel='bill (mm)', ylabel='flipper (mm)');"""
CELLS = [
    "import pandas as pd\np = pd.read_csv('penguins.csv')\np.groupby('species').mean(numeric_only=True).round(1)",
    PLOT,
    "p['bill']  # a name that does not exist",
]


def save(page: object, name: str) -> None:
    """Save what the page shows, with few colours, as a small file."""
    shot = Image.open(io.BytesIO(page.screenshot()))  # type: ignore[attr-defined]
    path = TARGET / f"{name}.png"
    shot.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KB")


def main() -> None:
    """Make all pictures."""
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as home, serving(Path(home)) as served:
        session = served.call("POST", "/v1/sessions", {"name": "penguins", "labels": {"agent": "analyst-3"}})["id"]
        path = f"/v1/sessions/{session}"
        data = (ROOT / "kernelsvc" / "data" / "penguins.csv").read_text("utf-8")
        served.call("POST", f"{path}/cells", {"code": f"open('penguins.csv', 'w').write({data!r});"})
        served.call("POST", f"{path}/checkpoints", {"name": "data loaded"})
        for code in CELLS:
            served.call("POST", f"{path}/cells", {"code": code})
        served.call("POST", f"{path}/branches", {"count": 2})
        other = served.call("POST", "/v1/sessions", {"name": "nightly report"})["id"]
        ask = {"code": "input('Send the report to everybody? ')", "allow_stdin": True}
        served.call("POST", f"/v1/sessions/{other}/cells?wait=queued", ask)
        with chromium() as browser:
            view = ConsolePage(browser, served)
            page = view.open()
            page.set_viewport_size({"width": 1200, "height": 760})
            page.get_by_text("waits for a person").wait_for()
            save(page, "sessions")
            page.goto(f"{served.url}/console/#/s/{session}")
            page.locator("iframe[data-shown]").first.wait_for()
            page.locator("article img").wait_for()
            page.get_by_text("KeyError").last.wait_for()
            page.wait_for_timeout(500)
            page.locator(".cells").evaluate(
                "e => { e.scrollTop = e.querySelector('iframe').closest('article').offsetTop - 6 }"
            )
            page.mouse.move(400, 400)
            page.wait_for_timeout(500)
            save(page, "notebook")
            page.goto(f"{served.url}/console/#/s/{session}/tree")
            page.get_by_text("data loaded").first.wait_for()
            save(page, "tree")
            served.call("DELETE", path)
            page.goto(f"{served.url}/console/#/s/{session}/log")
            page.get_by_role("button", name="Verify in this page").click()
            page.get_by_text("Verified", exact=True).wait_for()
            save(page, "log")
            page.goto(f"{served.url}/console/#/waiting")
            page.get_by_label("Send the report").wait_for()
            save(page, "waiting")
            view.close()


if __name__ == "__main__":
    main()
