"""The command line of the benchmarks.

python -m benchmarks run                  all sections and peers, written to docs/benchmarks/ and the README
python -m benchmarks run --only density   some sections (may be repeated), merged into the last run's figures
python -m benchmarks plots                table and plots from the last run's figures
python -m benchmarks smoke                few samples of kernelsvc and a plain kernel, written nowhere
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
from benchmarks.counts import SMOKE, Counts
from benchmarks.plan import Bench, say
from benchmarks.sections import SECTIONS, Section
from benchmarks.subjects import PlainZmq, Subject

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "benchmarks"
ENVIRONMENTS = ROOT / ".benchmarks"
SHOWN = ("ipykernel", "tornado", "numpy", "pandas", "matplotlib", "kernelsvc")


def limits(scratch: Path) -> dict[str, float]:
    """Measure the limit column in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.floor", str(scratch)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    )
    return found


def measured(
    subjects: list[Subject], counts: Counts, sections: list[Section], scratch: Path, versions: dict[str, str]
) -> dict[str, Any]:
    """Run the sections and return the content of the JSON file."""
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": report.machine(),
        "versions": {**report.versions(*SHOWN), **versions},
        "settings": counts.told,
    }
    samples = asyncio.run(Bench(counts, sections).run(subjects))
    summaries = {name: found.summary() for name, found in samples.items()}
    return report.document(summaries, limits(scratch), facts)


def run(args: argparse.Namespace, scratch: Path) -> int:
    """Measure all sections, or some, of all subjects, and write the results."""
    subjects, found = peers.everyone(ENVIRONMENTS, scratch, *args.setting)
    if args.subject:
        subjects = [subject for subject in subjects if any(part in subject.name for part in args.subject)]
    given = {name: value for name, value in vars(args).items() if name in vars(Counts()) and value is not None}
    if args.busy:
        given["busy"] = tuple(args.busy)
    counts = Counts(**given)
    sections = [section for section in SECTIONS if not args.only or section.name in args.only]
    data = measured(subjects, counts, sections, scratch, found)
    partly = bool(args.only or args.subject)
    if partly and args.write and (PAGES / "latest.json").exists():
        data = report.merged(json.loads((PAGES / "latest.json").read_text()), data, [s.name for s in sections])
    print(report.markdown(data))
    print("\n".join(report.goals(data["subjects"].get(report.OURS, {}))))
    if args.setting or any(getattr(counts, name) != getattr(Counts(), name) for name in ("lines", "big_bytes", "busy")):
        say("nothing is written: the table speaks of other amounts, or of other settings")
    elif args.write:
        tell(report.write(PAGES, ROOT / "README.md", data))
    return 0


def plots(args: argparse.Namespace, scratch: Path) -> int:
    """Write table and plots from the last run's figures."""
    del args, scratch
    tell(report.write(PAGES, ROOT / "README.md", json.loads((PAGES / "latest.json").read_text())))
    return 0


def smoke(args: argparse.Namespace, scratch: Path) -> int:
    """Test the harness with few samples. Return 1 if a subject could not be measured, or lost output."""
    del args
    data = measured([peers.ours(scratch), PlainZmq()], SMOKE, list(SECTIONS), scratch, {})
    print(report.markdown(data))
    say(f"drawn: {', '.join(path.name for path in report.draw(data, scratch))}")
    ours = data["subjects"][report.OURS]
    lost = sum(ours.get(name, {}).get("max", 1) for name in ("prints_lost", "big_print_lost"))
    return 1 if lost or any("missing" in found for found in ours.values()) else 0


def tell(paths: list[Path]) -> None:
    """Print the names of the written files."""
    for path in paths:
        say(f"written: {path.relative_to(ROOT)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    commands = made.add_subparsers(required=True)
    full = commands.add_parser("run", help="measure all sections and peers")
    full.set_defaults(do=run)
    names = [section.name for section in SECTIONS]
    full.add_argument("--only", action="append", choices=names, help="a section. May be repeated")
    full.add_argument("--subject", action="append", help="only subjects with this in their name. May be repeated")
    full.add_argument(
        "--setting", action="append", default=[], metavar="--NAME=VALUE", help="a setting of kernelsvc's server"
    )
    full.add_argument("--no-write", dest="write", action="store_false", help="print the table and change no file")
    for name, value in vars(Counts()).items():
        if isinstance(value, int):
            full.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {value}")
    full.add_argument("--busy", action="append", type=int, help="number of busy sessions. May be repeated")
    commands.add_parser("plots", help="write table and plots from the last figures").set_defaults(do=plots)
    commands.add_parser("smoke", help="few samples of kernelsvc and a plain kernel").set_defaults(do=smoke)
    return made


def main() -> int:
    """Run a command in a temporary directory."""
    args = parser().parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="kernelsvc-bench-"))
    try:
        return int(args.do(args, scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
