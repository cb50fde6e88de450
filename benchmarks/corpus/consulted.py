"""Questions to IPython, to the documentation and to programs."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell("timeit", "import numpy as np\n%timeit -n 100 -r 3 np.unique(np.arange(500))", ("per loop",)),
    Cell(
        "time",
        "%%time\ncount = sum(k % 7 for k in range(100_000))\nprint(count)",
        ("299997|299994|300000|29999", "Wall time"),
    ),
    Cell("ls", "!ls -la /usr/bin | head -40", ("total|root",)),
    Cell("pip-list", "!pip list", (r"pandas\s+\d", "numpy"), slow=True),
    Cell(
        "pip-install",
        "!pip install polars-xyz torch-nightly-xyz",
        ("No matching distribution|Could not find a version|network", "polars-xyz"),
        slow=True,
    ),
    Cell(
        "help-of-a-method",
        "import pandas as pd\nhelp(pd.DataFrame.pivot_table)",
        (r"pivot_table\(", "aggfunc", "margins"),
    ),
    Cell("dir", "dir(pd.Series)", ("rolling", "map|where")),
    Cell("question-mark", "pd.DataFrame.explode?", (r"explode\(|Signature", "ignore_index")),
    Cell("whos", "limit = 12; label = 'north'\n%whos", (r"\blimit\b", "str")),
    Cell("no-such-program", "!no-such-tool --version", ("not found",)),
    Cell(
        "bash",
        '%%bash\nfor n in 4 5 6; do echo "part $n"; done\nhead -2 /proc/meminfo\ncat absent.cfg',
        ("part 6", r"absent\.cfg"),
    ),
    Cell("environment", "import os\nfor name, value in sorted(os.environ.items()):\n    print(name, value)", ("HOME",)),
    Cell(
        "where-things-are",
        "import sys\nprint(sys.executable, sys.path); print(np.__file__); print(os.getcwd()); print(os.listdir('/'))",
        ("/home/user",),
    ),
    Cell("help-of-a-module", "import csv\nhelp(csv)", ("DictReader", "writer")),
    Cell("two-question-marks", "import shlex\nshlex.join??", ("def join", "split_command")),
    Cell("the-machine", "!df -h; free -m; ps aux | head; uname -a", ("Filesystem|Mem",)),
    Cell(
        "versions",
        "import matplotlib, scipy\nfor m in (np, pd, scipy, matplotlib):\n    print(m.__name__, m.__version__)",
        (r"pandas \d", r"scipy 1\."),
        needs=["scipy"],
    ),
]
