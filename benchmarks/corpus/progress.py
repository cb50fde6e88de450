"""Loops that report their progress."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell(
        "bar",
        """
import time
from tqdm import tqdm
squares = []
for k in tqdm(range(300), desc="Reading tiles"):
    time.sleep(.002)
    squares.append(k * k)
print("tiles:", len(squares))
""",
        ("tiles: 300", "Reading tiles", "300/300|100%"),
        needs=["tqdm"],
    ),
    Cell(
        "bars-in-bars",
        """
seen = 0
for part in tqdm(range(4), desc="Parts"):
    for k in tqdm(range(50), desc=f"Part {part}", leave=False):
        time.sleep(.002)
        seen += k
seen
""",
        ("4900", "Parts"),
        needs=["tqdm"],
    ),
    Cell(
        "bar-of-a-notebook",
        'from tqdm.auto import tqdm as bar\nlen([k + 1 for k in bar(range(150), desc="Packing")])',
        (r"\b150\b",),
        needs=["tqdm"],
    ),
    Cell(
        "rich-bar-and-table",
        """
import time
from rich.progress import track
from rich.console import Console
from rich.table import Table
for _ in track(range(40), description="Fetching..."):
    time.sleep(.005)
table = Table(title="Runs")
table.add_column("Solver"); table.add_column("Error", justify="right")
for name, error in [("euler", .31), ("heun", .042), ("rk4", .0007)]:
    table.add_row(name, f"{error:.4f}")
Console().print(table)
""",
        ("rk4", r"0\.0007", "euler"),
        needs=["rich"],
    ),
    Cell(
        "carriage-returns",
        """
import sys
for k in range(1, 801):
    sys.stdout.write(f"\\rblock {k}/800 ({k / 8:.1f}%)")
    sys.stdout.flush()
print("\\nall 800 blocks are here")
""",
        ("all 800 blocks are here", "800/800"),
    ),
    Cell(
        "epochs",
        """
import math
for epoch in range(1, 251):
    loss = 1.9 * math.exp(-epoch / 60) + .01 * math.sin(epoch)
    print(f"Epoch {epoch:3d}/250 - loss {loss:.4f} - val {loss * 1.1:.4f} - rate 5.0e-04 - took {epoch * .01:.2f} s")
print("best val:", round(loss * 1.1, 4))
""",
        (r"Epoch\s+1/250", "Epoch 250/250", r"best val: 0\.0"),
    ),
    Cell(
        "cleared-output",
        """
import time
from IPython.display import clear_output
for step in range(30):
    clear_output(wait=True)
    print(f"generation {step}: fitness {step * 2.5:.1f}")
    time.sleep(.005)
""",
        (r"generation 29: fitness 72\.5",),
    ),
    Cell(
        "updated-display",
        """
from IPython.display import display
line = display("none yet", display_id=True)
for k in range(20):
    line.update(f"{k + 1} of 20 parts joined")
""",
        ("20 of 20 parts joined",),
    ),
    Cell(
        "the-same-line",
        """
for attempt in range(400):
    print("no answer from queue.internal:6379, next try in 0.2s")
print("stopped after 400 tries")
""",
        (r"no answer from queue\.internal", "stopped after 400", "400"),
    ),
    Cell(
        "log-with-one-error",
        """
import logging
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
log = logging.getLogger("copy")
for k in range(120):
    log.info("table %d copied, %d rows", k, 500 + k)
    if k == 71:
        log.error("table 71: column 'price' is missing")
log.info("copied 120 tables")
""",
        ("table 71: column 'price' is missing", "copied 120 tables", "table 0 copied"),
    ),
    Cell(
        "grid-search",
        """
import warnings; warnings.filterwarnings("ignore")
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier
X, y = load_wine(return_X_y=True, as_frame=True)
choices = {"max_depth": [1, 2, 3, 5], "min_samples_leaf": [1, 4, 8]}
grid = GridSearchCV(DecisionTreeClassifier(random_state=0), choices, cv=5, verbose=3)
grid.fit(X, y)
print("best:", grid.best_params_, round(grid.best_score_, 3))
""",
        (r"best: \{'max_depth'", r"0\.\d+", "60"),
        needs=["sklearn"],
        slow=True,
    ),
    Cell(
        "dots",
        """
for k in range(2400):
    print(".", end="", flush=True)
    if k % 80 == 79:
        print(f" {k + 1} done")
""",
        ("2400 done", r"\. 80 done"),
    ),
]
