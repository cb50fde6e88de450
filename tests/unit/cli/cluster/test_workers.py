"""What workers get of the settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kernelsvc.cli.cluster import workers
from kernelsvc.cli.parser import build_parser
from kernelsvc.settings import Settings
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


def test_limits_of_the_machine_are_shared() -> None:
    assert workers.share(2000, 3) == 667
    assert workers.share(1, 4) == 1


def test_the_number_of_workers() -> None:
    assert workers.count(Settings(workers=3)) == 3
    assert workers.count(Settings(workers="auto")) >= 1


def test_a_worker_reads_the_tokens_of_the_first_one(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    worker = tmp_path / "workers" / "2"
    workers.share_tokens(tmp_path, worker)
    workers.share_tokens(tmp_path, worker)
    reader = TokenFile(worker / "keys")
    assert reader.read() == []
    from kernelsvc.model.tokens import TokenRecord

    _, kept = TokenFile(tmp_path / "keys").create(lambda digest: TokenRecord(name="a", sha256=digest))
    assert reader.read() == [kept]
    assert (worker / "keys").stat().st_mode & 0o777 == 0o700
