"""Limits of a session: network, files, memory, processes."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell(
        "request",
        'import requests\nreply = requests.get("https://weather.example.org/today", timeout=3)\nreply.json()',
        ("ConnectionError|NameResolution|network", r"requests\.get\(", r"weather\.example\.org"),
        needs=["requests"],
    ),
    Cell(
        "csv-from-the-network",
        'import pandas as pd\ntips = pd.read_csv("https://data.example.org/tips.csv")\ntips.head()',
        ("URLError|network|resolution", r"pd\.read_csv"),
    ),
    Cell(
        "absent-module",
        "import tensorflow as tf\nnet = tf.keras.Sequential()",
        ("No module named 'tensorflow'", "import tensorflow"),
    ),
    Cell(
        "sys-exit",
        'import sys, os\nif not os.path.exists("input.csv"):\n    print("input.csv is absent")\n    sys.exit(2)',
        (r"input\.csv is absent", "SystemExit: 2"),
    ),
    Cell("input", 'town = input("Which town? ")\nprint("so", town)', ("Which town|StdinNotImplemented|input",)),
    Cell("exit", "print('first part')\nexit()", ("first part",)),
    Cell("cell-after-exit", "print('second part')", ("second part",)),
    Cell(
        "name-in-other-letters",
        'open("log.txt", "w").write("x"); open("Prices.csv", "w").write("a\\n1\\n")\npd.read_csv("prices.csv")',
        ("FileNotFoundError", r"prices\.csv", r"Prices\.csv"),
    ),
    Cell(
        "read-only-place",
        'open("/etc/tool.conf", "w").write("on")',
        ("Read-only file system|Permission denied", r"/etc/tool\.conf"),
    ),
    Cell(
        "too-much-memory",
        "import numpy as np\nhuge = np.ones((70_000, 70_000))",
        ("MemoryError|memory", r"36\.5 GiB|memory"),
    ),
    Cell("excel", 'pd.DataFrame({"a": [1]}).to_excel("a.xlsx")', ("openpyxl|xlsx",)),
    Cell(
        "crash",
        "saved = [1]\nimport ctypes\nctypes.string_at(0)",
        ("SIGSEGV|signal|process ended|died|killed",),
    ),
    Cell("after-the-crash", "print('saved' in globals())", ("True|False",)),
    Cell("no-secret", 'import os\nsecret = os.environ["HF_TOKEN"]', ("KeyError: 'HF_TOKEN'",)),
    Cell(
        "files",
        """
import os, pathlib
os.makedirs("out/maps", exist_ok=True)
for k in range(4):
    pathlib.Path(f"out/maps/map_{k}.json").write_text("{}" * 500 * (k + 1))
pathlib.Path("summary.md").write_text("# Summary\\n" * 300)
os.remove("log.txt")
""",
        (r"^\[",),
    ),
    Cell(
        "thread",
        """
import threading, time
def tick():
    for k in range(3):
        time.sleep(.02); print("tick", k)
worker = threading.Thread(target=tick); worker.start(); worker.join()
print("all ticks are done")
""",
        ("tick 2", "all ticks are done"),
    ),
    Cell(
        "thread-that-fails",
        """
def broken():
    raise RuntimeError("no connection to shard 4")
worker = threading.Thread(target=broken); worker.start(); worker.join()
print("the rest went well")
""",
        ("no connection to shard 4", "the rest went well"),
    ),
    Cell(
        "rows-of-a-database",
        """
import sqlite3
db = sqlite3.connect(":memory:")
db.execute("create table m(k int, name text)")
db.executemany("insert into m values (?, ?)", [(k, f"item {k}") for k in range(250)])
db.execute("select * from m").fetchall()
""",
        ("item 0", "item 249|250"),
    ),
    Cell(
        "no-such-table", 'db.execute("select k from n where k > 1").fetchall()', ("OperationalError: no such table: n",)
    ),
    Cell("pip-magic", "%pip install seaborn-extra-xyz==9", ("No matching|Could not find|network|error",), slow=True),
    Cell(
        "all-values",
        'from IPython.core.interactiveshell import InteractiveShell\nInteractiveShell.ast_node_interactivity = "all"',
        setup=True,
    ),
    Cell("three-values", 'n = 6\nn * 3\n[n] * 2\n"done"', (r"\b18\b", r"\[6, 6\]", "done")),
]
