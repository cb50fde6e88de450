"""What happens to each library, and to each kind of thing a session may hold, when the session is branched.

One row is one claim of ``docs/reference/branching.md``, which is made from here, and
one test against a served instance: the setup runs in the parent, then it is branched.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        what: the thing, as a reader looks for it.
        setup: cells that make it and use it, before the branch.
        use: an expression that works in both copies after it; for a refusal, after ``undo``.
        expected: what that shows, in both.
        refused: for what can't be branched: part of the reason.
        undo: the cell that does what the reason says; then the branch is made.
        told: part of the warning that comes with a branch.
        meaning: for the docs, in a sentence.
        packages: what is needed besides numpy, pandas and matplotlib.
        debian: a Debian package that has it, where the one on PyPI is too large.
    """

    what: str
    setup: str
    use: str
    expected: str
    meaning: str
    refused: str = ""
    undo: str = ""
    told: str = ""
    packages: tuple[str, ...] = ()
    debian: str = ""


SKLEARN, ARROW, POLARS, DUCK = "scikit-learn==1.9.1", "pyarrow==26.0.1", "polars==2.1.0", "duckdb==2.0.0"
LIGHT, XG = "lightgbm==4.7.0", "xgboost-cpu==3.2.0"
_DATA = "import numpy as np\nX = np.random.RandomState(0).rand(4000, 4); y = (X[:, 0] > .5).astype(int)\n"

ROWS = [
    Row(
        "numpy with OpenBLAS, after use",
        "import numpy as np; a = np.random.RandomState(0).rand(400, 400); np.linalg.svd(a @ a)",
        "bool(np.allclose(np.linalg.solve(a, a @ a[0]), a[0])), np.linalg.svd(a)[1].shape",
        "(True, (400,))",
        "works in both; OpenBLAS ends its threads before a fork by itself",
    ),
    Row(
        "pandas",
        "import pandas as pd\nd = pd.DataFrame({'k': ['a', 'b'] * 1000, 'v': range(2000)}); d.groupby('k').v.sum()",
        "int(d.groupby('k').v.sum().sum()), d.k.str.upper().nunique()",
        "(1999000, 2)",
        "works in both",
    ),
    Row(
        "matplotlib figures",
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(); line, = ax.plot([1, 2, 3])",
        "line.set_ydata([3, 2, 1]), fig.canvas.draw(), [int(n) for n in line.get_ydata()]",
        "(None, None, [3, 2, 1])",
        "an open figure goes on in both, each its own",
    ),
    Row(
        "scikit-learn on OpenMP (HistGradientBoosting)",
        _DATA + "from sklearn.ensemble import HistGradientBoostingClassifier as H; H(max_iter=5).fit(X, y)",
        "bool(H(max_iter=5).fit(X, y).score(X, y) > .9)",
        "True",
        "works in both; OpenMP's threads are ended before the fork and start again when they are needed",
        packages=(SKLEARN,),
    ),
    Row(
        "scikit-learn on OpenMP (KMeans)",
        _DATA + "from sklearn.cluster import KMeans; KMeans(3, n_init=1).fit(X)",
        "KMeans(3, n_init=1).fit(X).cluster_centers_.shape",
        "(3, 4)",
        "as above",
        packages=(SKLEARN,),
    ),
    Row(
        "scikit-learn with joblib threads (`n_jobs=2`)",
        _DATA + "from sklearn.ensemble import RandomForestClassifier as R; R(10, n_jobs=2, random_state=0).fit(X, y)",
        "R(10, n_jobs=2, random_state=0).fit(X, y).predict(X).shape",
        "(4000,)",
        "works in both; joblib's threads end with each call",
        packages=(SKLEARN,),
    ),
    Row(
        "joblib's worker processes (loky), alive",
        "import os\nfrom joblib import Parallel, delayed\nout = Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(4))",
        "Parallel(n_jobs=2, backend='threading')(delayed(abs)(-n) for n in range(4))",
        "[0, 1, 2, 3]",
        "refused while its workers are alive; shut them down and branch",
        refused="ProcessPoolExecutor|loky|Executor",
        undo="from joblib.externals.loky import get_reusable_executor\nget_reusable_executor().shutdown(wait=True)",
        packages=(SKLEARN,),
    ),
    Row(
        "pyarrow",
        "import pyarrow as pa, pyarrow.compute as pc\nt = pa.table({'a': list(range(100_000))}); pc.sum(t['a'])",
        "pc.sum(t['a']).as_py(), t.group_by('a').aggregate([('a', 'count')]).num_rows",
        "(4999950000, 100000)",
        "works in both",
        packages=(ARROW,),
    ),
    Row(
        "polars, after use",
        "import polars as pl; f = pl.DataFrame({'a': list(range(1000))}); f.select(pl.col('a').sum())",
        "1 + 1",
        "2",
        "refused once its thread pool has started, which is for the life of the process: its calls would hang in a "
        "branch. Branch before the first polars call, or use pandas or pyarrow",
        refused="polars has started its thread pool",
        packages=(POLARS,),
    ),
    Row(
        "duckdb in memory",
        "import duckdb; c = duckdb.connect(); c.execute('create table t as select range a from range(10000)')",
        "c.execute('select sum(a) from t').fetchone(), c.execute('insert into t values (1)').fetchone()",
        "((49995000,), (1,))",
        "works in both, each with its own tables from then on",
        packages=(DUCK,),
    ),
    Row(
        "duckdb in a file, writable",
        "import duckdb; c = duckdb.connect('a.duckdb'); c.execute('create table t as select 1 a')",
        "duckdb.connect('a.duckdb').execute('select a from t').fetchone()",
        "(1,)",
        "refused: both would write into one file. Close it and branch; each branch has a copy of the file",
        refused="DuckDB connection to .*a.duckdb can write",
        undo="c.close()",
        packages=(DUCK,),
    ),
    Row(
        "sqlite3, in memory",
        "import sqlite3; db = sqlite3.connect(':memory:'); n = db.execute('create table t(a)')",
        "db.execute('insert into t values (1)').rowcount, db.execute('select count(*) from t').fetchone()",
        "(1, (1,))",
        "works in both, each with its own tables from then on",
    ),
    Row(
        "sqlite3, a file, writable",
        "import sqlite3; db = sqlite3.connect('a.db'); db.execute('create table t(a)'); db.commit()",
        "sqlite3.connect('a.db').execute('select count(*) from t').fetchone()",
        "(0,)",
        "refused: both would corrupt the file. Close it and branch; each branch has a copy of the file",
        refused="SQLite connection to .*a.db can write",
        undo="db.close()",
    ),
    Row(
        "sqlite3, a file, read-only",
        "import sqlite3\nwith sqlite3.connect('r.db') as w: n = w.execute('create table t(a)')\nw.close()\n"
        "db = sqlite3.connect('file:r.db?mode=ro', uri=True); n = db.execute('select * from t').fetchall()",
        "db.execute('select count(*) from t').fetchone()",
        "(0,)",
        "works in both",
    ),
    Row(
        "open files",
        "f = open('notes.txt', 'w+'); n = f.write('one\\n')",
        "(f.write('two\\n'), f.seek(0), f.read())[-1]",
        "'one\\ntwo\\n'",
        "buffers are written before the fork and each copy has its own position; one opened for writing is the "
        "parent's file in both, and a warning says so; open it again in the branch for the branch's own",
        told="",
    ),
    Row(
        "sockets, connected",
        "import socket\ns = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname())\n"
        "a, _ = s.accept()",
        "1 + 1",
        "2",
        "refused: both would talk on one connection. Close it and branch",
        refused="network connection to 127.0.0.1",
        undo="a.close(); c.close(); s.close()",
    ),
    Row(
        "sockets, a pair of its own, and pipes",
        "import socket, os; a, b = socket.socketpair(); r, w = os.pipe()",
        "a.fileno() > 0",
        "True",
        "shared by both, and a warning says so",
        told="is shared by both copies",
    ),
    Row(
        "subprocesses",
        "import subprocess; p = subprocess.Popen(['sleep', '600'])",
        "subprocess.run(['echo', 'on'], capture_output=True, text=True).stdout",
        "'on\\n'",
        "stay with the parent, and a warning says so; new ones can be started in both",
        told="Child process .* stays with the original",
    ),
    Row(
        "threads",
        "import threading; stop = threading.Event()\nt = threading.Thread(target=stop.wait, name='poller'); t.start()",
        "threading.active_count()",
        "1",
        "refused, each by its name: a branch would be without it, and with the locks it holds. End it and branch, or "
        "`force`",
        refused="Thread 'poller' is running",
        undo="stop.set(); t.join()",
    ),
    Row(
        "concurrent.futures, a thread pool",
        "from concurrent.futures import ThreadPoolExecutor; e = ThreadPoolExecutor(1); e.submit(int).result()",
        "ThreadPoolExecutor(1).submit(int).result()",
        "0",
        "refused while it has threads; shut it down, or use it in a `with` block",
        refused="Executor thread 'ThreadPoolExecutor-0_0' is alive. Shut the executor down",
        undo="e.shutdown()",
    ),
    Row(
        "concurrent.futures, a process pool",
        "from concurrent.futures import ProcessPoolExecutor; e = ProcessPoolExecutor(1); e.submit(int).result()",
        "1 + 1",
        "2",
        "refused while it has workers; shut it down, or use it in a `with` block",
        refused="A ProcessPoolExecutor is alive",
        undo="e.shutdown()",
    ),
    Row(
        "multiprocessing, a pool that was closed",
        "import multiprocessing as mp\ndef pool():\n    with mp.get_context('fork').Pool(2) as p:\n"
        "        return p.map(abs, [-1, -2])\nn = pool()",
        "pool()",
        "[1, 2]",
        "works in both",
    ),
    Row(
        "multiprocessing, a process that runs",
        "import multiprocessing as mp, time\n"
        "q = mp.get_context('fork').Process(target=time.sleep, args=(600,)); q.start()",
        "1 + 1",
        "2",
        "stays with the parent, and a warning says so",
        told="Child process .* stays with the original",
    ),
    Row(
        "asyncio tasks",
        "import asyncio\nn = 0\nasync def count():\n    global n\n    while True:\n"
        "        await asyncio.sleep(0.01); n += 1\n"
        "task = asyncio.create_task(count())",
        "(await asyncio.sleep(0.1), n > 0, task.done())[1:]",
        "(True, False)",
        "run on in both, and a warning says so; in a parked checkpoint nothing runs",
        told="background task count runs on in both copies",
    ),
    Row(
        "asyncio's default executor, idle",
        "import asyncio; n = await asyncio.to_thread(int)",
        "await asyncio.to_thread(int)",
        "0",
        "works in both; its idle threads are ended before the fork",
    ),
    Row(
        "random state",
        "import random, numpy as np\n"
        "random.seed(7); np.random.seed(7); g = np.random.default_rng(7); n = random.random()",
        "(random.random(), float(np.random.rand()), float(g.random()))",
        "(0.15084917392450192, 0.07630828937395717, 0.625095466604667)",
        "goes on from where the parent was, the same in every branch, until it is seeded anew; two new sessions never "
        "share one",
    ),
    Row(
        "temporary files",
        "import tempfile; t = tempfile.TemporaryFile('w+'); n = t.write('x')",
        "t.seek(0), t.read(), tempfile.NamedTemporaryFile().name != tempfile.NamedTemporaryFile().name",
        "(0, 'x', True)",
        "open ones go on, each copy at its own position in one file; names of new ones differ",
    ),
    Row(
        "lightgbm",
        _DATA + "import lightgbm as lgb; m = lgb.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, y)",
        "bool((lgb.LGBMClassifier(n_estimators=5, verbose=-1).fit(X, y).predict(X) == y).mean() > .9)",
        "True",
        "works in both; OpenMP as above",
        packages=(LIGHT, SKLEARN),
    ),
    Row(
        "xgboost",
        _DATA + "import xgboost as xgb; m = xgb.XGBClassifier(n_estimators=5).fit(X, y)",
        "bool((xgb.XGBClassifier(n_estimators=5).fit(X, y).predict(X) == y).mean() > .9)",
        "True",
        "works in both; OpenMP as above",
        packages=(XG, SKLEARN),
    ),
    Row(
        "torch on the CPU, after use",
        "import torch; torch.manual_seed(0); a = torch.rand(300, 300); w = torch.nn.Linear(300, 10)\n"
        "n = w(a @ a).sum().backward()",
        "tuple(w(a @ a).shape), bool(torch.allclose(torch.linalg.solve(a, a @ a[0]), a[0], atol=1e-2))",
        "((300, 10), True)",
        "works in both, training too; a GPU that was opened is refused",
        debian="python3-torch",
    ),
]
