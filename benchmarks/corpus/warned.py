"""Code that warns."""

from benchmarks.corpus import CorpusCell as Cell

CELLS = [
    Cell(
        "fragmented-frame",
        """
import numpy as np, pandas as pd
grown = pd.DataFrame({"k": range(500)})
for k in range(130):
    grown[f"c{k}"] = np.random.rand(500)
grown.shape
""",
        ("500, 131", "PerformanceWarning", r"fragmented|pd\.concat"),
    ),
    Cell(
        "numpy",
        """
values = np.array([2.0, 0.0, -2.0])
for k in range(25):
    ratio = np.log(values) / values
    root = np.sqrt(values - k)
print(ratio)
""",
        ("RuntimeWarning: divide by zero encountered in log", "invalid value encountered in sqrt", "nan"),
    ),
    Cell(
        "labels-in-japanese-and-chinese",
        """
import matplotlib.pyplot as plt
plt.rcParams["font.sans-serif"] = ["Noto Sans CJK JP", "SimHei"]
fig, ax = plt.subplots(figsize=(6, 4))
ax.bar(["春", "夏", "秋", "冬"], [12, 28, 17, 5])
ax.set_title("季節ごとの平均気温"); ax.set_xlabel("季节")
plt.show()
""",
        (),
        pictures=1,
    ),
    Cell(
        "no-convergence",
        """
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
X, y = load_wine(return_X_y=True)
scores = cross_val_score(LogisticRegression(max_iter=15), X, y, cv=8)
print(scores.mean().round(3))
""",
        ("ConvergenceWarning", r"0\.\d+", "max_iter|scale the data"),
        needs=["sklearn"],
        slow=True,
    ),
    Cell(
        "own-warnings",
        """
import warnings
warnings.simplefilter("always")
def number(text):
    try:
        return float(text)
    except ValueError:
        warnings.warn(f"{text!r} is no number, NaN is used")
        return float("nan")
pd.Series([number(text) for text in ["2.5", "none", "3,1", "", "7", "xyz"] * 20]).isna().sum()
""",
        ("'none' is no number", "'xyz' is no number", r"\b80\b"),
    ),
    Cell("old-alias", 'pd.date_range("2025-01-01", periods=24, freq="H")[:2]', ("H|freq",)),
    Cell(
        "both-streams",
        """
import sys
print("opening the settings", file=sys.stderr)
print("threshold: 12")
print("WARNING: no settings, defaults are used", file=sys.stderr)
print("score: 8.25")
""",
        ("threshold: 12", "defaults are used", r"score: 8\.25"),
    ),
]
