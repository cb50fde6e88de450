"""The REPL on a real terminal: a pty, typed into."""

import re
import sys

import pexpect
import pytest
from served import Served

pytestmark = pytest.mark.timeout(90)

UP = "\x1b[A"


class Sitting:
    """A person at ``kernelsvc repl``."""

    def __init__(self, served: Served, home, *options: str) -> None:
        env = {**served.client_env, "TERM": "xterm", "NO_COLOR": "1", "HOME": str(home), "XDG_STATE_HOME": str(home)}
        self.child = pexpect.spawn(
            sys.executable, ["-m", "kernelsvc", "repl", *options], env=env, dimensions=(40, 120), encoding="utf-8",
            timeout=30,
        )  # fmt: skip
        self.prompt(1)

    def prompt(self, number: int) -> str:
        """Wait for ``In [number]:``; what was shown before it."""
        self.child.expect(rf"In \[{number}\]: ")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.child.before)

    def type(self, text: str, enter: bool = True) -> None:
        self.child.send(text + ("\r" if enter else ""))


@pytest.fixture
def sit(served, tmp_path):
    sittings = []

    def begin(*options):
        sittings.append(Sitting(served, tmp_path, *options))
        return sittings[-1]

    yield begin
    for sitting in sittings:
        sitting.child.close(force=True)


def test_cells_results_and_variables(sit):
    me = sit()
    me.type("x = 20")
    me.prompt(2)
    me.type("x + 22")
    assert "Out[2]: 42" in me.prompt(3)
    me.type("_ + 1")
    assert "Out[3]: 43" in me.prompt(4)
    me.type("exit")
    me.child.expect(pexpect.EOF)
    me.child.close()
    assert me.child.exitstatus == 0


def test_several_lines(sit):
    me = sit()
    me.type("for i in range(3):")
    me.child.expect(r"\.\.\.: ")
    me.type("print(i * 10)")
    me.child.expect(r"\.\.\.: ")
    me.type("")
    me.type("")
    assert "20" in me.prompt(2)


def test_errors_history_and_help(sit):
    me = sit()
    me.type("1 / 0")
    assert "ZeroDivisionError" in me.prompt(2)
    me.type(UP, enter=False)
    me.child.expect("1 / 0")
    me.type("\x03", enter=False)
    me.type("len?")
    assert "number of items" in me.prompt(2)


def test_tab_completes_from_the_live_kernel(sit):
    me = sit()
    me.type("a_name_like_no_other = 5")
    me.prompt(2)
    me.type("a_name_li\t", enter=False)
    me.child.expect("a_name_like_no_other")
    me.type("")
    assert "Out[2]: 5" in me.prompt(3)


def test_ctrl_c_interrupts_the_cell_and_not_the_session(sit):
    me = sit()
    me.type("y = 1; import time; print('sleeping'); time.sleep(60)")
    me.child.expect("sleeping\r\n")
    me.child.sendintr()
    assert "KeyboardInterrupt" in me.prompt(2)
    me.type("y")
    assert "Out[2]: 1" in me.prompt(3)


def test_input_asks_at_the_terminal(sit):
    me = sit()
    me.type("name = input('who? ')")
    me.child.expect(r"who\? ")
    me.type("Ada")
    me.prompt(2)
    me.type("name")
    assert "Out[2]: 'Ada'" in me.prompt(3)


def test_commands(sit, tmp_path):
    me = sit()
    me.type("answer = 42")
    me.prompt(2)
    me.type(":vars")
    assert re.search(r"answer +int", me.prompt(2))
    me.type(f":save {tmp_path / 'n.ipynb'}")
    assert "wrote" in me.prompt(2)
    assert (tmp_path / "n.ipynb").exists()
    me.type(":nonsense")
    assert ":help" in me.prompt(2)


def test_a_kept_session_is_found_again(sit):
    me = sit("--keep")
    me.type("kept = 7")
    me.prompt(2)
    me.type("\x04", enter=False)
    me.child.expect(r"kernelsvc repl --session (\S+)")
    session = me.child.match[1]
    again = pexpect.spawn(
        sys.executable, ["-m", "kernelsvc", "repl", "--session", session], env=me.child.env, dimensions=(40, 120),
        encoding="utf-8", timeout=30,
    )  # fmt: skip
    again.expect(r"In \[2\]: ")
    again.send("kept\r")
    again.expect(r"Out\[2\]: 7")
    again.close(force=True)
