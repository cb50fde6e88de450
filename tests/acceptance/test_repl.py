"""The REPL as a person sees it: on a pty, behind a terminal emulator, typed into."""

import re
import sys
import time

import pexpect
import pyte
import pytest
from served import serving_on_one_port

pytestmark = pytest.mark.timeout(90)

UP, TAB, CTRL_C, CTRL_D = "\x1b[A", "\t", "\x03", "\x04"
SECONDS = 30


class Sitting:
    """A person at ``kernelsvc repl``, who reads the screen."""

    def __init__(self, served, home, *options: str, first: int = 1) -> None:
        env = {**served.client_env, "TERM": "xterm", "NO_COLOR": "1", "HOME": str(home), "XDG_STATE_HOME": str(home)}
        self.child = pexpect.spawn(
            sys.executable, ["-m", "kernelsvc", "repl", *options], env=env, dimensions=(200, 120), encoding="utf-8"
        )
        self.screen = pyte.Screen(120, 200)
        # prompt_toolkit asks where the cursor is, and a terminal answers.
        self.screen.write_process_input = self.child.send
        self.stream = pyte.Stream(self.screen)
        self.prompt(first)

    def sees(self, pattern: str) -> re.Match[str]:
        """Wait until the screen shows this."""
        end = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.text(), re.MULTILINE)):
            assert time.monotonic() < end, f"{pattern!r} is not on the screen:\n{self.text()}"
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.2))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                end = 0.0
        return found

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def prompt(self, number: int) -> str:
        """Wait for an empty ``In [number]:`` at the end of the screen; all that is shown."""
        self.sees(rf"In \[{number}\]:\Z")
        return self.text()

    def types(self, text: str, enter: bool = True) -> None:
        self.child.send(text + ("\r" if enter else ""))

    def leaves(self) -> int:
        self.types(CTRL_D, enter=False)
        while True:
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=SECONDS))
            except pexpect.EOF:
                break
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def sit(served, tmp_path):
    sittings = []

    def begin(*options, **more):
        sittings.append(Sitting(served, tmp_path, *options, **more))
        return sittings[-1]

    yield begin
    for sitting in sittings:
        sitting.child.close(force=True)


def test_cells_results_and_variables(sit):
    me = sit()
    me.types("x = 20")
    me.prompt(2)
    me.types("x + 22")
    assert "Out[2]: 42" in me.prompt(3)
    me.types("_ + 1")
    assert "Out[3]: 43" in me.prompt(4)
    assert me.leaves() == 0


def test_several_lines(sit):
    me = sit()
    me.types("for i in range(3):")
    me.sees(r"\.\.\.:\Z")
    me.types("print(i * 10)")
    me.sees(r"print\(i \* 10\)\n +\.\.\.:\Z")
    me.types("")  # One Enter ends the block. A second one would be echoed into the output of the running cell.
    assert "\n0\n10\n20\n" in me.prompt(2)


def test_errors_history_and_help(sit):
    me = sit()
    me.types("1 / 0")
    assert "ZeroDivisionError" in me.prompt(2)
    me.types(UP, enter=False)
    me.sees(r"In \[2\]: 1 / 0\Z")
    me.types(CTRL_C, enter=False)
    me.prompt(2)
    me.types("len?")
    me.sees("number of items")


def test_tab_completes_from_the_live_kernel(sit):
    me = sit()
    me.types("a_name_like_no_other = 5")
    me.prompt(2)
    me.types("a_name_li" + TAB, enter=False)
    me.sees(r"In \[2\]: a_name_like_no_other\Z")
    me.types("")
    assert "Out[2]: 5" in me.prompt(3)


def test_ctrl_c_interrupts_the_cell_and_not_the_session(sit):
    me = sit()
    me.types("y = 1; import time; print('sleep' + 'ing'); time.sleep(60)")
    me.sees("^sleeping")
    me.child.sendintr()
    assert "KeyboardInterrupt" in me.prompt(2)
    me.types("y")
    assert "Out[2]: 1" in me.prompt(3)


def test_input_asks_at_the_terminal(sit):
    me = sit()
    me.types("name = input('who' + '? ')")
    me.sees(r"who\?\Z")
    me.types("Ada")
    me.prompt(2)
    me.types("name")
    assert "Out[2]: 'Ada'" in me.prompt(3)


def test_commands(sit, tmp_path):
    me = sit()
    me.types("answer = 42")
    me.prompt(2)
    me.types(":vars")
    me.sees(r"^answer +int")
    me.types(f":save {tmp_path / 'n.ipynb'}")
    me.sees("wrote .*n.ipynb")
    assert (tmp_path / "n.ipynb").exists()
    me.types(":nonsense")
    me.sees("':help' lists the commands")
    me.prompt(2)


def test_a_kept_session_is_found_again(sit):
    me = sit("--keep")
    me.types("kept = 7")
    me.prompt(2)
    assert me.leaves() == 0
    session = me.sees(r"kernelsvc repl --session (\S+)")[1]
    again = sit("--session", session, first=2)
    again.types("kept")
    assert "Out[2]: 7" in again.prompt(3)


def test_it_comes_back_with_the_server(short_tmp, tmp_path):
    with serving_on_one_port(short_tmp) as server:
        me = Sitting(server, tmp_path)
        me.types("kept = 5")
        me.prompt(2)
        server.kill()
        server.start()
        me.types("kept * 2")
        me.sees(r"^Out\[2\]: 10")
        me.child.close(force=True)
