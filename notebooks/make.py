"""Make the example notebooks: run sessions on a server and export them.

    python notebooks/make.py            all of them
    python notebooks/make.py recovery   one

Each example is a list of steps that a model could take. The notebooks in this directory are the exports.
``tests/acceptance/test_notebooks.py`` runs them again and compares the output.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

from kernelsvc.cli.demo_cells import CELLS, LAST_CELL
from kernelsvc.cli.server_locator import private_server
from kernelsvc.cli.terminal import Terminal
from kernelsvc.client import AsyncClient, AsyncSession
from kernelsvc.model import events as ev

HERE = Path(__file__).parent


class Step(NamedTuple):
    """One cell, the thought behind it, and the expected reason of its end."""

    why: str
    code: str
    reason: ev.Reason = ev.Reason.OK
    timeout: float | None = None

    @property
    def source(self) -> str:
        """The code to send, with the thought as a comment."""
        return f"# {self.why}\n{self.code}"


SHORT_ERRORS = Step("Short errors: for a model, the message says enough.", "%xmode Minimal\n")

ANALYSIS = [
    SHORT_ERRORS,
    *(
        Step(cell.thought, cell.code, ev.Reason.ERROR if cell is CELLS[4] else ev.Reason.OK)
        for cell in (*CELLS, LAST_CELL)
    ),
]

STREAMING = [
    Step(
        "Two interleaved moons, and a small network to tell them apart.",
        """\
import numpy as np

rng = np.random.default_rng(11)
n = 4000
angle = rng.uniform(0, np.pi, n)
label = np.arange(n) % 2
moons = np.column_stack([np.cos(angle), np.sin(angle)])
moons[label == 1] = [1, 0.5] - moons[label == 1]
moons += rng.normal(0, 0.18, moons.shape)

def network(width=24):
    sizes = [2, width, width, 1]
    return [(rng.normal(0, (2 / a) ** 0.5, (a, b)), np.zeros(b)) for a, b in zip(sizes, sizes[1:])]

def forward(layers, x):
    seen = [x]
    for number, (w, b) in enumerate(layers, 1):
        x = x @ w + b
        x = np.maximum(x, 0) if number < len(layers) else 1 / (1 + np.exp(-x))
        seen.append(x)
    return seen

print(moons.shape, label.mean())
""",
    ),
    Step(
        "Train it. A line for each epoch, as it ends; the bar is one display that is updated in place.",
        """\
from IPython.display import display

layers = network()
epochs, batch, rate = 40, 50, 0.1
bar = display({"text/plain": "starting"}, raw=True, display_id=True)
history = []
for epoch in range(1, epochs + 1):
    for rows in np.array_split(rng.permutation(n), n // batch):
        seen = forward(layers, moons[rows])
        slope = (seen[-1] - label[rows, None]) / len(rows)
        for number in reversed(range(len(layers))):
            w, b = layers[number]
            back = slope @ w.T * (seen[number] > 0)
            layers[number] = (w - rate * seen[number].T @ slope, b - rate * slope.sum(0))
            slope = back
    chance = forward(layers, moons)[-1][:, 0].clip(1e-9, 1 - 1e-9)
    loss = -np.mean(label * np.log(chance) + (1 - label) * np.log(1 - chance))
    history.append((loss, np.mean((chance > 0.5) == label)))
    print(f"epoch {epoch:2}  loss {loss:.3f}  right {history[-1][1]:.1%}", flush=True)
    done = round(30 * epoch / epochs)
    bar.update({"text/plain": "█" * done + "░" * (30 - done) + f" {epoch}/{epochs}"}, raw=True)
""",
    ),
    Step(
        "How it went, and what it learned.",
        """\
import matplotlib.pyplot as plt

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
left.plot([loss for loss, _ in history])
left.set(xlabel="epoch", ylabel="loss", title="training")
xs, ys = np.meshgrid(np.linspace(-1.6, 2.6, 160), np.linspace(-1.2, 1.7, 120))
chance = forward(layers, np.column_stack([xs.ravel(), ys.ravel()]))[-1].reshape(xs.shape)
right.contourf(xs, ys, chance, levels=20, cmap="RdBu", alpha=0.7)
right.scatter(*moons[::8].T, c=label[::8], s=5, cmap="RdBu", edgecolors="k", linewidths=0.2)
right.set(title=f"{history[-1][1]:.1%} right", xticks=[], yticks=[])
plt.show()
""",
    ),
]

RECOVERY = [
    Step(
        "Orders of a small shop, as they come out of its till: nothing is quite right.",
        """\
orders = [
    {"id": 1, "item": "tea", "price": "3.20", "count": 2},
    {"id": 2, "item": "coffee", "price": "2,80", "count": 1},
    {"id": 3, "item": "cake", "price": "4.50"},
    {"id": 4, "item": "tea", "price": "3.20", "count": 5},
]
len(orders)
""",
    ),
    Step(
        "What was earned?",
        """\
total = 0
for order in orders:
    total += float(order["price"]) * order["count"]
total
""",
        ev.Reason.ERROR,
    ),
    Step(
        "A comma in a price. The error cost nothing: orders, and what the loop had done so far, are still there.",
        """\
print(order, total)
def price(order):
    return float(order["price"].replace(",", "."))
sum(price(order) * order["count"] for order in orders)
""",
        ev.Reason.ERROR,
    ),
    Step(
        "And an order without a count. One it is, then.",
        """\
total = sum(price(order) * order.get("count", 1) for order in orders)
print(f"{total:.2f}")
""",
    ),
    SHORT_ERRORS,
    Step(
        "Which sets of items sell best together? A first idea, tried within half a second.",
        """\
import time

def best(size):
    deadline = time.monotonic() + 3
    tried = 0
    while time.monotonic() < deadline:  # far too many sets to try them all
        tried += 1
    return tried

best(20)
""",
        ev.Reason.TIMEOUT,
        0.5,
    ),
    Step(
        "Too slow, and stopped. Nothing else is lost; count pairs instead.",
        """\
from collections import Counter

print("still here:", f"{total:.2f}", len(orders))
Counter(order["item"] for order in orders).most_common()
""",
    ),
    Step(
        "The whole process is brought down, as a bug in C code or the OOM killer would do it.",
        """\
import os, signal

os.kill(os.getpid(), signal.SIGKILL)
""",
        ev.Reason.KERNEL_DIED,
    ),
    Step(
        "A crash costs one cell, not the session: the kernel was restored from the checkpoint before it.",
        """\
print("still here:", f"{total:.2f}", [order["item"] for order in orders], price(orders[1]))
""",
    ),
]

TREE = [
    Step(
        "Data and a learner that has two knobs: how smooth, and how wide its bumps are.",
        """\
import numpy as np

rng = np.random.default_rng(5)
x = np.sort(rng.uniform(-3, 3, 120))
y = np.sin(2 * x) + 0.4 * x + rng.normal(0, 0.35, x.size)
test = rng.permutation(x.size) < 40

def bumps(x, width):
    return np.exp(-(((x[:, None] - np.linspace(-3.2, 3.2, 40)) / width) ** 2))

def learn(width, smooth):
    B = bumps(x[~test], width)
    return np.linalg.solve(B.T @ B + smooth * np.eye(40), B.T @ y[~test])

def error(width, weights):
    return float(np.sqrt(np.mean((bumps(x[test], width) @ weights - y[test]) ** 2)))

print(x.size, "points,", int(test.sum()), "of them kept for the test")
""",
    ),
]

WIDTHS, SMOOTH = (0.1, 0.3, 1.0, 2.5), (1e-4, 1e-2, 1.0, 30.0)

TRY = """\
width, smooth = {width}, {smooth}
weights = learn(width, smooth)
{{"width": width, "smooth": smooth, "error": round(error(width, weights), 4)}}
"""

BEST = Step(
    "The best of the sixteen goes on; the others are gone. This branch's notebook is complete.",
    """\
import matplotlib.pyplot as plt

grid = np.linspace(-3, 3, 400)
fig, ax = plt.subplots(figsize=(7, 3.6))
ax.scatter(x[~test], y[~test], s=10, label="learned from")
ax.scatter(x[test], y[test], s=10, label="tested on")
ax.plot(grid, bumps(grid, width) @ weights, "k", lw=1.5, label=f"width {width}, smooth {smooth}")
ax.legend(frameon=False)
plt.show()
""",
)

FUNCTIONS = [
    Step(
        "The application offers a function. One direct call of it, whose whole result a model would read.",
        """\
import json

rows = tools.expenses(person=0)
print(len(rows), "items, such as", rows[0])
""",
    ),
    Step(
        "Who spent more than 3,300 on travel? By direct calls: twenty of them, and a model reads each result.",
        """\
texts = [json.dumps(tools.expenses(person=person)) for person in range(20)]
direct = sum(map(len, texts)) // 4  # four characters count as one token
print(f"{len(texts)} calls, {direct:,} tokens")
""",
    ),
    Step(
        "The same from code: one cell, and a model reads its answer.",
        """\
over = {}
for person in range(20):
    spent = sum(each["amount"] for each in tools.expenses(person) if each["category"] == "travel")
    if spent > 3300:
        over[person] = spent
print(over)
""",
    ),
    Step(
        "The cell before and its answer, in tokens. What the function refuses is an exception that code can handle.",
        """\
code = (len(In[-2]) + len(str(over))) // 4
print(f"direct {direct:,}, from code {code:,}: {direct / code:.0f} times fewer")
try:
    tools.expenses(person=99)
except KeyError as error:
    print("refused:", error)
""",
    ),
]

EXAMPLES = {
    "analysis": ANALYSIS,
    "streaming": STREAMING,
    "recovery": RECOVERY,
    "tree_search": TREE,
    "functions": FUNCTIONS,
}


def expenses(person: int) -> list[dict[str, Any]]:
    """Line items of a person, of all categories."""
    if person not in range(20):
        raise KeyError(f"there is no person {person}")
    kinds = ("travel", "meals", "software", "office")
    return [
        {
            "item": f"{person}-{n}",
            "category": kinds[n % 4],
            "amount": 50 + (person * 37 + n * 61) % 400,
            "note": f"receipt {person}-{n}, approved by the manager",
        }
        for n in range(50)
    ]


async def best_branch(session: AsyncSession) -> AsyncSession:
    """Make sixteen branches of a session, each with its own parameters. Return the best one, close the others."""
    knobs = [(width, smooth) for width in WIDTHS for smooth in SMOOTH]
    branches = await session.branch(count=len(knobs), labels={"example": "tree search"})

    async def attempt(branch: AsyncSession, width: float, smooth: float) -> float:
        step = Step("One of sixteen, in a branch of its own.", TRY.format(width=width, smooth=smooth))
        cell = (await branch.run(step.source)).raise_for_error()
        return float(ast.literal_eval(cell.text.strip())["error"])

    errors = await asyncio.gather(*(attempt(b, w, s) for b, (w, s) in zip(branches, knobs, strict=True)))
    for (width, smooth), error in sorted(zip(knobs, errors, strict=True), key=lambda pair: pair[1]):
        _say(f"  width {width:<4} smooth {smooth:<7} error {error:.4f}")
    best = branches[errors.index(min(errors))]
    await asyncio.gather(*(branch.close() for branch in branches if branch is not best))
    return best


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


async def play(session: AsyncSession, steps: list[Step]) -> None:
    """Run each step. Check the reason of its end, and that its lines arrive while it runs."""
    for step in steps:
        early = 0
        end = ev.CellFinished()
        async for event in session.stream(step.source, timeout=step.timeout, on_error="continue"):
            early += isinstance(event, ev.Stream)
            if isinstance(event, ev.CellFinished):
                end = event
        _say(f"  {end.reason:<12} {end.usage.wall_ms:8.1f} ms  {early:3} pieces of text  {step.why}")
        if end.reason is not step.reason:
            raise SystemExit(f"{step.why!r} ended with {end.reason}, not {step.reason}: {end.message}")


async def make(client: AsyncClient, name: str) -> None:
    """Make one example, from a new session to the notebook in this directory."""
    _say(name)
    async with await client.create_session(name=name) as session:
        if name == "analysis":
            with as_file(files("kernelsvc") / "data" / "penguins.csv") as data:
                await session.upload(data)
        if name == "functions":
            await session.offer(expenses, effects="read")
        await play(session, EXAMPLES[name])
        if name == "tree_search":
            session = await best_branch(session)
            await play(session, [BEST])
        await session.close()
        notebook = await session.notebook()
    (HERE / f"{name}.ipynb").write_bytes(notebook)


@contextlib.asynccontextmanager
async def _client() -> AsyncIterator[AsyncClient]:
    with tempfile.TemporaryDirectory() as data:
        async with (
            private_server(Terminal(), data_dir=Path(data), tcp=True) as address,
            AsyncClient(address.base, address.token) as client,
        ):
            yield client


async def main(names: list[str]) -> None:
    """Make the named examples, or all."""
    async with _client() as client:
        for name in names or EXAMPLES:
            await make(client, name)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
