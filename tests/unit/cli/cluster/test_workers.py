"""What workers get of the settings."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from kernelsvc.cli.cluster import workers
from kernelsvc.cli.parser import build_parser
from kernelsvc.settings import Settings
from kernelsvc.store.environments import EnvironmentRecord, EnvironmentStore
from kernelsvc.store.token_file import TokenFile


def test_workers_get_the_options_that_are_not_the_fronts() -> None:
    line = ["serve", "--workers", "2", "--port", "1", "--token", "t", "--config", "f", "--data-dir", "d"]
    line += ["--origins", "https://a", "--origins", "https://b", "--limits-cell-seconds", "5", "--max-sessions", "9"]
    given = workers.given_options(vars(build_parser().parse_args(line)))
    assert given == ["--config=f", "--origins=https://a", "--origins=https://b", "--limits-cell-seconds=5"]


def test_one_server_imports_nothing_of_fronts() -> None:
    code = "import sys, kernelsvc.cli.serve as s; print([n for n in sys.modules if '.front' in n or 'joining' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_no_worker_starts_after_the_signal_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not get the signal, and the front would wait for it forever."""
    monkeypatch.setattr(workers, "SHORTEST_WAIT", 0.3)
    started: list[int] = []

    def command(number: int, front: str, alive: int) -> list[str]:
        started.append(number)
        return [sys.executable, "-c", "raise SystemExit(1)"]

    run = object.__new__(workers._Workers)
    run._signal, run._processes, run._stopping, run._failure = None, {}, asyncio.Event(), ""
    run._front, run._settings = None, Settings()
    monkeypatch.setattr(run, "_command", command)
    monkeypatch.setattr(run, "_environment", dict)
    keeping = asyncio.ensure_future(run._keep_one(1, "", 0))
    await wait_until(lambda: started == [1] and bool(run._processes), what="the worker runs")
    await wait_until(lambda: not run._processes, what="the worker has ended")
    run._signal = signal.SIGUSR1
    async with asyncio.timeout(20):
        await keeping
    assert started == [1]
    assert run._stopping.is_set()


def test_limits_of_the_machine_are_shared() -> None:
    assert workers.share(2000, 3) == 667
    assert workers.share(1, 4) == 1


def test_the_number_of_workers() -> None:
    assert workers.count(Settings(workers=3)) == 3
    assert workers.count(Settings(workers="auto")) >= 1


def test_a_worker_has_the_tokens_and_environments_of_the_first_one(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    worker = tmp_path / "workers" / "2"
    workers.share_files(tmp_path, worker)
    workers.share_files(tmp_path, worker)
    EnvironmentStore(tmp_path).write(EnvironmentRecord(name="sci", python="/usr/bin/python3"))
    assert [*EnvironmentStore(worker).read_all()] == ["sci"]
    reader = TokenFile(worker / "keys")
    assert reader.read() == []
    from kernelsvc.model.tokens import TokenRecord

    _, kept = TokenFile(tmp_path / "keys").create(lambda digest: TokenRecord(name="a", sha256=digest))
    assert reader.read() == [kept]
    assert (worker / "keys").stat().st_mode & 0o777 == 0o700


def test_a_worker_keeps_environments_of_its_own(tmp_path: Path) -> None:
    worker = tmp_path / "workers" / "2"
    EnvironmentStore(worker).write(EnvironmentRecord(name="old", python="/usr/bin/python3"))
    workers.share_files(tmp_path, worker)
    assert [*EnvironmentStore(worker).read_all()] == ["old"]


@pytest.mark.parametrize(
    ("began", "now", "served", "since"),
    [
        (20.0, 31.0, False, 0.0),
        (20.0, 31.0, True, 31.0),
        (10.0, 31.0, False, 31.0),
    ],
)
def test_kills_of_a_worker_that_serves_are_no_failing_starts(
    began: float, now: float, served: bool, since: float
) -> None:
    assert workers.failing_from(0.0, began, now, served) == since
