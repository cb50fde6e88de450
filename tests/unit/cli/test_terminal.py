"""A cell's events on terminals of several kinds."""

import base64
import io

import pytest
from PIL import Image as Pillow

from kernelsvc.cli import terminal_image
from kernelsvc.cli.terminal import CellView, Terminal
from kernelsvc.client import Image
from kernelsvc.model import events as ev


class Tty(io.StringIO):
    def isatty(self):
        return True


def png(width=8, height=4, colour=(255, 0, 0)):
    file = io.BytesIO()
    Pillow.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def played(*events, tty=False, env=None, **options):
    terminal = Terminal(Tty() if tty else io.StringIO(), io.StringIO(), env or {})
    view = CellView(terminal, **options)
    for event in events:
        view.show(event)
    return terminal.out.getvalue(), terminal.err.getvalue(), view


def test_text_goes_where_it_was_sent():
    out, err, _ = played(ev.Stream(text="a"), ev.Stream(name="stderr", text="e\n"), ev.Stream(text="b\n"))
    assert (out, err) == ("ab\n", "e\n")


def test_a_result_begins_on_a_line_of_its_own():
    out, _, _ = played(ev.Stream(text="no end"), ev.Result(data={"text/plain": "42"}, execution_count=3), prompts=True)
    assert out == "no end\nOut[3]: 42\n"


def test_a_table_begins_under_its_prompt():
    out, _, _ = played(ev.Result(data={"text/plain": "a\nb"}, execution_count=3), prompts=True)
    assert out == "Out[3]: \na\nb\n"


def test_errors_go_to_stderr_without_colour_where_there_is_none():
    _, err, _ = played(ev.Error(ename="E", evalue="v", traceback=["\x1b[31mTraceback\x1b[0m", "E: v"]))
    assert err == "Traceback\nE: v\n"


def test_the_end_says_what_happened_when_it_was_not_plain():
    _, err, _ = played(ev.CellFinished(reason=ev.Reason.MEMORY, message="512 MiB reached", variables_kept=True))
    assert err == "memory: 512 MiB reached. Variables were kept.\n"
    assert played(ev.CellFinished())[:2] == ("", "")


def test_hostile_text_is_sieved_and_its_rest_comes_at_the_end():
    out, _, _ = played(ev.Stream(text="x\x1b"), ev.Stream(text="]0;t\a"), ev.Stream(text="\x1b["), ev.CellFinished())
    assert out.rstrip("\n") == "x\\x1b]0;t\\x1b["


def test_clear_output_begins_the_line_anew():
    out, _, _ = played(ev.Stream(text="10 %"), ev.OutputCleared(wait=True), ev.Stream(text="20 %"), tty=True)
    assert out == "10 %\r\x1b[K20 %"
    out, _, _ = played(ev.Stream(text="10 %\n"), ev.OutputCleared(wait=True), ev.Stream(text="20 %\n"))
    assert out == "10 %\n20 %\n"


def test_pictures_are_described_where_they_cannot_be_shown():
    data = {"image/png": base64.b64encode(png()).decode(), "text/plain": "<Figure>"}
    out, _, view = played(ev.Display(data=data))
    assert out.startswith("[image/png, 8 by 4, ")
    assert view.images[0].data == png()


def test_pictures_in_half_blocks():
    data = {"image/png": base64.b64encode(png()).decode()}
    out, _, _ = played(ev.Display(data=data), tty=True, columns=4, env={"COLORTERM": "truecolor"})
    assert out == ("\x1b[38;2;255;0;0;48;2;255;0;0m▀" * 4 + "\x1b[0m\n")
    out, _, _ = played(ev.Display(data=data), tty=True, columns=4)
    assert out == ("\x1b[38;5;196;48;5;196m▀" * 4 + "\x1b[0m\n")


@pytest.mark.parametrize(
    ("pixel", "colour"),
    [((255, 255, 255), 231), ((0, 0, 0), 16), ((128, 128, 128), 244), ((0, 0, 255), 21), ((31, 119, 180), 31)],
)
def test_the_nearest_of_256_colours(pixel, colour):
    assert terminal_image._nearest(bytes(pixel)) == colour


@pytest.mark.parametrize(
    ("env", "way"),
    [
        ({}, "blocks256"),
        ({"COLORTERM": "truecolor"}, "blocks"),
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"NO_COLOR": "1"}, "words"),
        ({"TERM": "dumb"}, "words"),
    ],
)
def test_the_way_a_terminal_shows_pictures(env, way):
    assert Terminal(Tty(), io.StringIO(), env).pictures == way
    assert Terminal(io.StringIO(), io.StringIO(), env).pictures == "words"


def test_terminals_own_protocols():
    image = Image(mime="image/png", data=png(600, 400) + b"\0" * 6000)
    [kitty] = terminal_image.lines(image, "kitty", 80)
    assert kitty.startswith("\x1b_Ga=T,f=100,m=1;")
    assert kitty.count("\x1b_G") == kitty.count("\x1b\\") > 1
    [iterm] = terminal_image.lines(image, "iterm", 80)
    assert base64.b64encode(image.data).decode() in iterm


def test_a_picture_that_unfolds_too_far_is_only_described(monkeypatch):
    monkeypatch.setattr(terminal_image, "MAX_PIXELS", 10)
    [line] = terminal_image.lines(Image(mime="image/png", data=png()), "blocks", 80)
    assert line.startswith("[image/png")
    [line] = terminal_image.lines(Image(mime="image/png", data=b"no picture"), "blocks", 80)
    assert line == "[image/png, 10 B]"
