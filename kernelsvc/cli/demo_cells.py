"""The cells of the demo's analysis, with the thoughts of an imagined model."""

from __future__ import annotations

from typing import NamedTuple


class DemoCell(NamedTuple):
    """One cell, and the thought behind it."""

    thought: str
    code: str

    @property
    def source(self) -> str:
        """The code to send. The thought is a comment in it, so that the notebook has it."""
        return f"# {self.thought}\n{self.code}"


CELLS = (
    DemoCell(
        "A file of penguins. What is in it?",
        """\
import pandas as pd

raw = pd.read_csv("penguins.csv")
print(f"{len(raw)} penguins, {raw.shape[1]} columns")
raw.sample(5, random_state=7)
""",
    ),
    DemoCell(
        "Some values are missing. Where, and how many?",
        """\
missing = raw.isna().sum()
print(missing[missing > 0].to_string())
raw.describe().round(1)
""",
    ),
    DemoCell(
        "Few are incomplete: drop them, and give the columns short names.",
        """\
penguins = raw.dropna().rename(columns={
    "bill_length_mm": "bill", "bill_depth_mm": "depth", "flipper_length_mm": "flipper", "body_mass_g": "mass",
})
print(f"kept {len(penguins)} of {len(raw)}")
""",
    ),
    DemoCell(
        "How do the species differ?",
        """\
penguins.groupby("species")[["bill", "depth", "flipper", "mass"]].mean().round(1)
""",
    ),
    DemoCell(
        "Are bill length and depth related? All correlations at once.",
        """\
penguins.corr().round(2)
""",
    ),
    DemoCell(
        "Of course, 'Adelie' is no number. Only the numeric columns, then.",
        """\
penguins[["bill", "depth", "flipper", "mass"]].corr().round(2)
""",
    ),
    DemoCell(
        "Longer bills are shallower, says the table: -0.23. Odd. Look before believing it.",
        """\
import matplotlib.pyplot as plt
import numpy as np

fig, ax = plt.subplots(figsize=(7, 4.2))
for name, group in penguins.groupby("species"):
    dots = ax.scatter(group["bill"], group["depth"], s=14, alpha=0.6, label=name)
    xs = np.array([group["bill"].min(), group["bill"].max()])
    ax.plot(xs, np.poly1d(np.polyfit(group["bill"], group["depth"], 1))(xs), color=dots.get_facecolor()[0][:3], lw=2)
xs = np.array([penguins["bill"].min(), penguins["bill"].max()])
ax.plot(xs, np.poly1d(np.polyfit(penguins["bill"], penguins["depth"], 1))(xs), "k--", lw=1, label="all together")
ax.set(xlabel="bill length (mm)", ylabel="bill depth (mm)", title="Simpson's paradox, with feathers")
ax.legend(frameon=False)
plt.show()
""",
    ),
    DemoCell(
        "Within each species the slope is positive; pooled, it turns around. Now a model of body mass.",
        """\
def fit(columns, frame=penguins):
    X = np.column_stack([np.ones(len(frame)), pd.get_dummies(frame[columns], drop_first=True).astype(float)])
    y = frame["mass"].to_numpy(float)
    weights, *_ = np.linalg.lstsq(X, y, rcond=None)
    return weights, 1 - ((y - X @ weights) ** 2).sum() / ((y - y.mean()) ** 2).sum()

for terms in (["flipper"], ["flipper", "species"], ["flipper", "species", "sex"]):
    print(f"mass ~ {' + '.join(terms):<24} R2 = {fit(terms)[1]:.3f}")
""",
    ),
    DemoCell(
        "How sure is the flipper's weight? Resample, and watch it settle.",
        """\
rng = np.random.default_rng(2007)
slopes = []
for step in range(1, 1001):
    slopes.append(fit(["flipper", "sex"], penguins.sample(len(penguins), replace=True, random_state=rng))[0][1])
    if step % 200 == 0:
        low, high = np.percentile(slopes, [2.5, 97.5])
        print(f"{step:5} resamples: {np.mean(slopes):.1f} g per mm, 95 % between {low:.1f} and {high:.1f}", flush=True)
""",
    ),
)

#: Two ways to go on from the same state, each in a branch of its own.
BRANCH_CELLS = (
    DemoCell(
        "what if each species had a slope of its own?",
        """\
frame = penguins.copy()
for name in ("Chinstrap", "Gentoo"):
    frame[f"flipper x {name}"] = frame["flipper"] * (frame["species"] == name)
columns = ["flipper", "species", "sex", "flipper x Chinstrap", "flipper x Gentoo"]
print(f"R2 = {fit(columns, frame)[1]:.3f} with {len(columns)} terms")
""",
    ),
    DemoCell(
        "what if the bill's depth said more?",
        """\
columns = ["flipper", "species", "sex", "depth"]
print(f"R2 = {fit(columns)[1]:.3f} with {len(columns)} terms")
""",
    ),
)

LAST_CELL = DemoCell(
    "Depth says more, with fewer terms. Back in the first session, which knows nothing of either attempt.",
    """\
print("traces of the branches here:", [name for name in ("frame", "columns") if name in globals()])
print(f"mass ~ flipper + species + sex + depth: R2 = {fit(['flipper', 'species', 'sex', 'depth'])[1]:.3f}")
""",
)
