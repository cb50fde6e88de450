"""Every hostile cell in a real session, and, where that is safe, without confinement.

Run as root and as an ordinary user. Without confinement each attack must succeed: otherwise its failure in a session
would prove nothing. ``test_cells_in_copies`` runs the cells in branches and resumed checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from attack.cell import Cell, Who
from attack.cell_runs import CONFINED, WHO, check, check_confined, ids, run, skip_without
from attack.cells import ALL
from attack.escape_attacks import FAMILY
from attack.harmless_cells import HARMLESS

#: What Landlock, seccomp and rlimits still hold where no namespace can be had.
WITHOUT_NAMESPACES = [
    *("read the server's secret", "list the server's data directory", "read it through a symlink"),
    *("read it through init's root", "read it through .. from here", "hard-link it into the session"),
    *("read another session's file", "write another session's file", "read the host's accounts"),
    *("read the host's /tmp", "read the host's /dev/shm", "write beside Python", "write into /usr", "write into /etc"),
    *("signal the host's process", "read the server's environment", "trace the host's process"),
    *("call the host's loopback", "reach an abstract socket", "reach the server's socket", "gain by exec"),
    *("make a user namespace", "make an io_uring", "write and read in the session's directory", "a shell command"),
    *("temporary files", "matplotlib", "sqlite", "threads", "asyncio with a subprocess", "a Python subprocess"),
]

pytestmark = pytest.mark.timeout(300)


BARE = [(who, cell) for who in WHO for cell in ALL if who in cell.bare]
DEGRADED = [(who, cell) for who in WHO for cell in ALL if cell.name in WITHOUT_NAMESPACES]


def each(pairs: list[tuple[Who, Cell]], usual: Who) -> list[ParameterSet]:
    """The parameters of a test. Those of other users than this one are left to a thorough run."""
    marks = {who: [] if who == usual else [pytest.mark.thorough] for who in WHO}
    return [pytest.param(who, cell, id=f"{who}: {cell.name}", marks=marks[who]) for who, cell in pairs]


@pytest.mark.parametrize(("who", "cell"), CONFINED, ids=ids(CONFINED))
def test_a_session_blocks_an_attack_and_runs_a_harmless_cell(who: Who, cell: Cell) -> None:
    check_confined(cell, run(who, "session", tuple(c.name for w, c in CONFINED if w == who)))


@pytest.mark.parametrize(("who", "cell"), each(BARE, WHO[0]))
def test_an_attack_succeeds_without_confinement(who: Who, cell: Cell) -> None:
    answer = run(who, "off", tuple(c.name for w, c in BARE if w == who))
    skip_without(cell, answer)
    assert answer["report"]["isolation"] == "none"
    check(cell, answer["cells"][cell.name], "reached")


@pytest.mark.parametrize(("who", "cell"), each(DEGRADED, WHO[-1]))
def test_landlock_and_seccomp_block_without_namespaces(who: Who, cell: Cell) -> None:
    answer = run(who, "best-effort", tuple(WITHOUT_NAMESPACES), ("mount namespace",))
    assert answer["report"]["isolation"] == "files"
    assert {lack["layer"] for lack in answer["report"]["not_enforced"]} >= {"filesystem", "pid namespace"}
    wanted = "reached" if cell.confined == "works" else cell.confined
    check(cell, answer["cells"][cell.name], wanted)


@pytest.mark.parametrize("who", WHO)
def test_required_refuses_without_namespaces(who: Who) -> None:
    with pytest.raises(AssertionError, match=r"sandbox|confine a session as required"):
        run(who, "required", ("gain by exec",), ("mount namespace",))


def test_security_md_has_the_suites_figures_and_its_names_are_unique() -> None:
    hostile = sum(cell.confined in ("blocked", "died") for cell in ALL)
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    assert f"holds {hostile} hostile cells and {len(HARMLESS)} ordinary ones" in text
    assert f"and {len(FAMILY)} more are a branch's attacks on its parent" in text
    assert len({cell.name for cell in ALL}) == len(ALL)
    assert set(WITHOUT_NAMESPACES) <= {cell.name for cell in ALL}
