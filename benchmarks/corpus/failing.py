"""Code that fails."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell(
        "division",
        """
def mean(xs):
    return sum(xs) / len(xs)
groups = {"first": [2, 4], "second": [], "third": [9]}
for name, xs in groups.items():
    print(name, mean(xs))
""",
        (r"first 3\.0", "ZeroDivisionError: division by zero", r"sum\(xs\) / len\(xs\)", r"mean\(xs\)\)"),
    ),
    Cell("misspelled-name", "total = sumarize(groups)\ntotal", ("NameError: name 'sumarize' is not defined",)),
    Cell(
        "text-in-a-model",
        """
import numpy as np, pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.linear_model import LogisticRegression
people = pd.DataFrame({"height": [160, 171, 182, 190], "town": ["Bergen", "Kyoto", "Lima", "Nara"], "y": [1, 0, 1, 0]})
pipe = make_pipeline(StandardScaler(), LogisticRegression())
pipe.fit(people[["height", "town"]], people["y"])
""",
        ("could not convert string to float: 'Bergen'", r"pipe\.fit\("),
        needs=["sklearn"],
    ),
    Cell(
        "missing-value-in-a-model",
        'people["height"] = [160, np.nan, 182, 190]\npipe.fit(people[["height"]], people["y"])',
        ("Input X contains NaN", "SimpleImputer|HistGradient", r"pipe\.fit\("),
        needs=["sklearn"],
    ),
    Cell(
        "tasks-that-fail",
        """
import asyncio

async def load(k):
    await asyncio.sleep(.005 * k)
    if k == 2:
        raise ValueError(f"part {k} is damaged")
    if k == 3:
        raise TimeoutError(f"part {k} took too long")
    return k

async def load_all():
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(load(k)) for k in (3, 2, 1)]
    return [part.result() for part in parts]

await load_all()
""",
        ("ExceptionGroup", "ValueError: part 2 is damaged", r"await load_all\(\)"),
    ),
    Cell(
        "recursion",
        "def ways(n):\n    return ways(n - 1) + ways(n - 3)\nways(40)",
        ("RecursionError: maximum recursion depth exceeded", r"ways\(n - 1\) \+ ways\(n - 3\)"),
    ),
    Cell(
        "chain-of-three",
        """
class SetupError(Exception):
    pass

def read(path):
    try:
        return open(path).read()
    except FileNotFoundError as error:
        raise SetupError(f"no settings in {path!r}") from error

def boot():
    try:
        read("conf/app.ini")
    except SetupError:
        {}["default"]

boot()
""",
        (
            "FileNotFoundError",
            r"SetupError: no settings in 'conf/app\.ini'",
            "KeyError: 'default'",
            r'\{\}\["default"\]',
        ),
    ),
    Cell(
        "syntax",
        "def area(w, h)\n    return w * h",
        ("SyntaxError", r"def area\(w, h\)", "expected ':'"),
    ),
    Cell("indentation", "def twice(x):\n    y = 2 * x\n      return y\ntwice(3)", ("IndentationError", "return y")),
    Cell(
        "very-long-message",
        """
entries = [{"n": k, "label": f"entry{k}", "weight": k * .5} for k in range(350)]
assert max(e["weight"] for e in entries) < 100, f"too heavy: {entries}"
""",
        ("AssertionError: too heavy", "assert max"),
    ),
    Cell(
        "error-in-an-own-module",
        '''
open("shapes.py", "w").write("""
import json

def load_all(paths):
    return [load_one(path) for path in paths]

def load_one(path):
    with open(path) as file:
        return outline(json.load(file))

def outline(document):
    return [point["x"] for point in document["points"]]
""")
open("a.json", "w").write('{"Points": []}')
import shapes
shapes.load_all(["a.json"])
''',
        ("KeyError: 'points'", r"shapes\.py", r'document\["points"\]', r"shapes\.load_all"),
    ),
    Cell(
        "program-that-fails",
        'import subprocess\nsubprocess.run(["ls", "/no/such/place"], check=True, capture_output=True, text=True)',
        ("CalledProcessError", "/no/such/place", "exit status 2", r"subprocess\.run\(\["),
    ),
    Cell(
        "shapes",
        "import numpy as np\nleft = np.ones((64, 16)); right = np.ones((8, 16))\n(left * 2) + right",
        (r"could not be broadcast together with shapes \(64,16\) \(8,16\)", r"\+ right"),
    ),
    Cell(
        "text-around-json",
        "import json\nanswer = 'Here you are: {\"n\": 1,}'\njson.loads(answer)",
        ("JSONDecodeError", r"line 1 column 1 \(char 0\)", r"json\.loads\(answer\)"),
    ),
    Cell(
        "threads-of-a-pool",
        """
from concurrent.futures import ThreadPoolExecutor
def inverse(k):
    return 1 / (k - 2)
with ThreadPoolExecutor(3) as pool:
    print(list(pool.map(inverse, range(5))))
""",
        ("ZeroDivisionError", r"1 / \(k - 2\)", r"pool\.map\(inverse"),
    ),
    Cell(
        "processes-of-a-pool",
        """
import multiprocessing as mp
def look_up(key):
    return {"n": 1}[key]
with mp.get_context("fork").Pool(2) as pool:
    print(pool.map(look_up, ["n", "m"]))
""",
        ("KeyError: 'm'", r'\{"n": 1\}\[key\]', r"pool\.map\(look_up"),
    ),
    Cell(
        "misspelled-attribute",
        "class Tank:\n    def __init__(self, volume): self.volume = volume\nTank(3).volumne",
        ("AttributeError", "volumne", "volume"),
    ),
    Cell(
        "missing-argument",
        "def simulate(steps, dt, *, seed):\n    pass\nsimulate(10, dt=.1)",
        ("TypeError", "seed", r"simulate\(10"),
    ),
    Cell(
        "deep-in-own-code",
        """
def amount(text): return float(text.replace("EUR", ""))
def line(row): return {**row, "sum": amount(row["sum"])}
def invoice(doc): return [line(row) for row in doc["rows"]]
def invoices(docs): return [row for doc in docs for row in invoice(doc)]
invoices([{"rows": [{"sum": "EUR2.5"}, {"sum": "EUR3,1"}]}])
""",
        ("could not convert string to float: '3,1'", "amount", "line", r"invoices\(\["),
    ),
    Cell(
        "row-by-row",
        """
import pandas as pd
trips = pd.DataFrame({"km": [3, 5, None, 8], "fare": ["4.5", "?", "9", "12"]})
def price(row):
    return int(row["km"]) * float(row["fare"])
trips["price"] = trips.apply(price, axis=1)
""",
        (r"could not convert string to float: '\?'", r'int\(row\["km"\]\)', r"trips\.apply"),
    ),
    Cell("no-such-group", 'trips.groupby("driver").agg({"km": "sum"})', ("KeyError: 'driver'", r'groupby\("driver"\)')),
    Cell(
        "index",
        "letters = list('abcdefgh')\nfor k in range(8):\n    if letters[k] in 'bdf':\n        letters.pop(k)",
        ("IndexError: list index out of range", r"letters\[k\] in 'bdf'"),
    ),
    Cell(
        "output-before-the-error",
        'for k, text in enumerate(["7", "8", "9b"]):\n    print(f"line {k}: {text}")\n    number = int(text)',
        ("line 2: 9b", r"invalid literal for int\(\) with base 10: '9b'", r"int\(text\)"),
    ),
    Cell("loop-in-a-loop", "async def one():\n    return 1\nasyncio.run(one())", ("1|running event loop",)),
    Cell(
        "endless",
        "import time\nk = 0\nwhile True:\n    k += 1\n    time.sleep(.01)",
        ("timeout|took longer", r"time\.sleep\(\.01\)"),
        seconds=0.7,
    ),
]
