"""The command line of the benchmarks.

python -m benchmarks run      everything, beside every peer; writes docs/benchmarks/ and the README's table
python -m benchmarks smoke    a few of each, ourselves and a plain kernel only; writes nothing
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import peers, report
from benchmarks.figures import Samples
from benchmarks.plan import SMOKE, Bench, Counts, say
from benchmarks.subjects import PlainZmq, Subject

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".benchmarks"
SHOWN = ("ipykernel", "tornado", "numpy", "pandas", "matplotlib", "kernelsvc")


def limits(scratch: Path) -> dict[str, float]:
    """The limit column, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.floor", str(scratch)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def measured(subjects: list[Subject], counts: Counts, scratch: Path, found: dict[str, str]) -> tuple[str, dict, dict]:
    """Run it; the Markdown, the JSON and the samples."""
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": report.machine(),
        "versions": {**report.versions(*SHOWN), **found},
        "settings": counts.told,
    }
    samples = asyncio.run(Bench(counts).run(subjects))
    floor = limits(scratch)
    return report.markdown(samples, floor, facts), report.document(samples, floor, facts), samples


def run(args: argparse.Namespace, scratch: Path) -> int:
    """Everything, beside every peer."""
    subjects, found = peers.everyone(ENVIRONMENTS, scratch, *args.setting)
    if args.only:
        subjects = [subject for subject in subjects if any(part in subject.name for part in args.only)]
    counts = Counts(**{name: value for name, value in vars(args).items() if name in vars(Counts()) and value})
    text, data, samples = measured(subjects, counts, scratch, found)
    print(text)
    tell_goals(samples)
    if args.setting or any(getattr(counts, name) != getattr(Counts, name) for name in ("lines", "big_bytes", "busy")):
        say("nothing is written: the table speaks of other amounts, or of other settings")
    elif args.write:
        for path in report.write(ROOT / "docs" / "benchmarks", ROOT / "README.md", text, data):
            say(f"written: {path.relative_to(ROOT)}")
    return 0


def smoke(args: argparse.Namespace, scratch: Path) -> int:
    """A few of each, to see that the harness runs. Fails when something could not be measured or was lost."""
    del args
    text, _, samples = measured([peers.ours(scratch), PlainZmq()], SMOKE, scratch, {})
    print(text)
    ours = samples[report.OURS]
    lost = ours.values.get("prints_lost", [1])[0] or ours.values.get("big_print_lost", [1])[0]
    return 1 if ours.missing or lost else 0


def tell_goals(samples: dict[str, Samples]) -> None:
    """Which of the project's own goals were met."""
    if report.OURS in samples:
        print("\n".join(report.goals(samples[report.OURS])))


def main() -> int:
    """Parse the command line and run it in a directory that is removed after."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    full = commands.add_parser("run", help="everything, beside every peer")
    full.set_defaults(do=run)
    full.add_argument("--only", action="append", help="subjects whose name holds this; may be given again")
    full.add_argument("--setting", action="append", default=[], metavar="--NAME=VALUE", help="for our own server")
    full.add_argument("--no-write", dest="write", action="store_false", help="print the table and change no file")
    for name, value in vars(Counts()).items():
        full.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {value}")
    commands.add_parser("smoke", help="a few of each, ourselves and a plain kernel only").set_defaults(do=smoke)
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="kernelsvc-bench-"))
    try:
        return int(args.do(args, scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
