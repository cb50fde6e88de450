"""E2B's own chart extractor (e2b-charts) beside ours, on the same figures. The argument is the file of our module."""

import datetime
import importlib.util
import json
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
from e2b_charts import chart_figure_to_dict

warnings.simplefilter("ignore")
plt.switch_backend("agg")
spec = importlib.util.spec_from_file_location("ours", sys.argv[1])
ours = importlib.util.module_from_spec(spec)
sys.modules["ours"] = ours
spec.loader.exec_module(ours)

DAYS = [datetime.date(2026, 1, day) for day in (1, 2, 3)]


def both(ax):
    ax.figure.canvas.draw()
    found = ours.chart(ax.figure), chart_figure_to_dict(ax.figure)
    return tuple(json.loads(json.dumps(each, default=float)) for each in found)


SAME = {
    "lines": lambda ax: (ax.plot([1, 2, 3], [1, 4, 9], label="a"), ax.plot([1, 2], [2, 1]), ax.set(xlabel="t (s)")),
    "log": lambda ax: (ax.plot([1, 10], [1, 100]), ax.set(xscale="log", yscale="symlog")),
    "dates": lambda ax: ax.plot(DAYS, [1, 2, 3]),
    "datetime64": lambda ax: ax.plot(np.array(["2026-01-01", "2026-01-02"], "datetime64[D]"), [1, 2]),
    "categories": lambda ax: ax.plot(["a", "b", "c"], [1, 2, 3]),
    "scatter": lambda ax: ax.scatter([1, 2, 3], [3, 2, 1], label="s"),
    "bars": lambda ax: (ax.bar(["a", "b"], [1, 2], label="g"), ax.bar(["a", "b"], [3, 2], bottom=[1, 2])),
    "bars on their side": lambda ax: (ax.barh(["a", "b"], [1, 2]), ax.set(xlabel="n [kg]")),
    "histogram": lambda ax: ax.hist([1, 2, 2, 3]),
    "pie": lambda ax: ax.pie([1, 2, 5], labels=["x", "y", "z"]),
    "boxes": lambda ax: ax.boxplot([[1, 2, 3, 4, 5], [2, 4, 6, 8, 10, 30]], patch_artist=True),
    "picture": lambda ax: ax.imshow([[1, 2], [3, 4]]),
}
#: Figures that E2B's extractor does not understand, or gets wrong, and what we make of them.
BETTER = {
    "bars of one height": (lambda ax: ax.bar(["a", "b"], [2, 2]), "bar"),
    "unfilled boxes": (lambda ax: ax.boxplot([[1, 2, 3, 4, 9]]), "box_and_whisker"),
    "error bars": (lambda ax: ax.errorbar([1, 2], [1, 2], yerr=0.1), "line"),
    "bars with errors": (lambda ax: ax.bar(["a", "b"], [1, 2], yerr=0.1), "bar"),
}


def main():
    for name, draw in SAME.items():
        _, ax = plt.subplots()
        draw(ax)
        mine, theirs = both(ax)
        assert mine == theirs, f"{name}\n{mine}\n{theirs}"
    for name, (draw, kind) in BETTER.items():
        _, ax = plt.subplots()
        draw(ax)
        mine = ours.chart(ax.figure)
        assert mine["type"] == kind, (name, mine)
        assert mine["elements"], (name, mine)
    print("ok")


main()
