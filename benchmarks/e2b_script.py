"""Measure a server with E2B's Python SDK, in an environment that has it. Prints the samples as JSON.

    e2b_script.py API_URL SANDBOX_URL KEY ROUNDS

With an empty URL the SDK uses its default, E2B's cloud.
"""

import json
import os
import sys
import time

api, sandbox_url, key, rounds = sys.argv[1:5]
os.environ.update(
    {k: v for k, v in (("E2B_API_URL", api), ("E2B_SANDBOX_URL", sandbox_url), ("E2B_API_KEY", key)) if v}
)

from e2b_code_interpreter import Sandbox  # noqa: E402 - it reads the environment

samples: dict[str, list[float]] = {}


def timed(row, work):
    began = time.perf_counter()
    made = work()
    samples.setdefault(row, []).append((time.perf_counter() - began) * 1e3)
    return made


def one_round():
    box = timed("a new sandbox, to its first answer", lambda: opened(Sandbox.create(timeout=300)))
    for _ in range(50):
        timed("run_code('1 + 1')", lambda: box.run_code("1 + 1"))
    timed("10,000 printed lines", lambda: box.run_code("for i in range(10000): print(i)"))
    box.run_code("import pandas as pd, numpy as np, matplotlib.pyplot as plt")
    frame = timed("a DataFrame of 1,000 x 10, as HTML and data", lambda: box.run_code(
        "pd.DataFrame(np.arange(10000).reshape(1000, 10))"
    ))  # fmt: skip
    assert frame.results[0].data
    plot = timed("a plot, as PNG and chart", lambda: box.run_code("plt.plot(range(1000)); plt.show()"))
    assert plot.results[0].chart
    context = timed("a new context, to its first answer", lambda: with_context(box))
    box.remove_code_context(context)
    try:
        (fork,) = timed("a fork, to its first answer", lambda: [opened(each) for each in box.fork(count=1)])
        fork.kill()
    except Exception as error:  # not every account may
        print(f"fork: {error}", file=sys.stderr)
    timed("pause, connect, to the first answer", lambda: paused(box))
    timed("kill", box.kill)


def opened(box):
    assert box.run_code("1 + 1").text == "2"
    return box


def with_context(box):
    context = box.create_code_context()
    assert box.run_code("1 + 1", context=context).text == "2"
    return context


def paused(box):
    box.pause()
    opened(Sandbox.connect(box.sandbox_id))


for _ in range(int(rounds)):
    one_round()
print(json.dumps(samples))
