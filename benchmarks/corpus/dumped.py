"""Long output."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell(
        "json",
        """
import json, random
random.seed(5)
events = [{"id": k, "device": {"name": f"pump_{k}", "mail": f"p{k}@example.org", "tags": random.sample("abc", 2)},
           "steps": [{"at": 10 * k + j, "kind": random.choice(["on", "off"]), "flow": round(random.random() * 9, 2)}
                     for j in range(4)]} for k in range(110)]
print(json.dumps(events, indent=2))
""",
        ('"id": 0', '"mail"', '"steps"', '"id": 109'),
    ),
    Cell("list-of-dictionaries", "events", ("pump_0", "110|pump_109", "steps")),
    Cell("long-list", "cubes = [k ** 3 for k in range(15_000)]\ncubes", (r"\[0,\s*1,\s*8", "15000|3374325044999")),
    Cell("printed-list", "print(cubes)", (r"\[0, 1, 8", "3374325044999")),
    Cell(
        "long-text",
        'words = " ".join(f"word{k}" for k in range(20_000))\nwords',
        ("word0 word1", r"word19999|2\d\d,?\d\d\d"),
    ),
    Cell(
        "matrix",
        "import numpy as np\ngrid = np.arange(810_000, dtype=float).reshape(900, 900)\nprint(grid.shape)\ngrid",
        (r"\(900, 900\)", r"809999|8\.09999e\+05"),
    ),
    Cell(
        "matrix-in-full",
        "import sys\nnp.set_printoptions(threshold=sys.maxsize)\nprint(grid[:30, :150])",
        (r"0\.", r"26249|2\.6249"),
    ),
    Cell("bytes", "block = bytes(range(256)) * 30\nblock", ("b'|bytes", r"7,?680|\\xff")),
    Cell(
        "base64",
        'import base64\nprint("the archive:")\nprint(base64.b64encode(block * 6).decode())',
        ("the archive", "AAECAwQF"),
    ),
    Cell(
        "objects-without-a-repr",
        """
class Leaf:
    def __init__(self, name):
        self.name = name
[Leaf(f"l{k}") for k in range(25)]
""",
        ("Leaf", r"(?s)25|Leaf.*Leaf"),
    ),
    Cell(
        "nested-dictionary",
        """
racks = {f"rack_{k}": {"host": f"10.1.{k}.7", "ports": list(range(9000, 9024)),
                       "env": {f"E_{j}": f"v{j}" for j in range(10)}}
         for k in range(20)}
racks
""",
        ("rack_0", "ports", "rack_19|20 "),
    ),
    Cell(
        "page-without-line-breaks",
        """
page = ("<html><style>" + "p{margin:0}" * 350 + "</style><body>"
        + "".join(f"<p><a href='/part/{k}'>Part {k}</a> {k * 1.5:.2f}</p>" for k in range(250)) + "</body></html>")
print(page)
""",
        ("<html>", "Part 0", "Part 249"),
    ),
    Cell(
        "eighty-thousand-lines",
        "for k in range(80_000):\n    print(k, k ** 2)",
        (r"(?m)^0 0", "79999 6399840001"),
    ),
    Cell(
        "one-line-among-many",
        """
for k in range(3500):
    print(f"FAILED block {k}: bad checksum (expected 1c, got 9e)" if k == 2020 else f"block {k}: fine")
""",
        ("block 0: fine", "bad checksum", "block 3499"),
    ),
    Cell(
        "iterators",
        "print({2, 1}), (k for k in range(2)), map(str, [1]), {k: k for k in range(2)}.items()",
        (r"\{1, 2\}", "dict_items"),
    ),
    Cell(
        "pprint",
        'from pprint import pprint\npprint(racks["rack_2"]); pprint(list(racks)[:4])',
        (r"10\.1\.2\.7", "rack_3"),
    ),
    Cell(
        "sparse-matrix",
        'import scipy.sparse\nscipy.sparse.random(800, 800, density=.0025, random_state=0, format="csr")',
        ("800", "1600|stored elements"),
        needs=["scipy"],
    ),
    Cell(
        "texts-in-three-scripts",
        """
notes = ["这台仪器很准。", "電池がすぐに切れました。", "설명서가 조금 어렵지만 좋아요 🙂"] * 50
for k, note in enumerate(notes):
    print(k, note)
""",
        ("这台仪器很准", "電池がすぐ", "149 "),
    ),
]
