"""A cell's events on terminals of several kinds."""

import base64
import io
import json

import pytest
from PIL import Image as Pillow

from kernelsvc.cli.terminal import CellPrinter, Terminal
from kernelsvc.cli.terminal import image as terminal_image
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
    view = CellPrinter(terminal, **options)
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


def test_an_unusual_end_has_a_message():
    _, err, _ = played(ev.CellFinished(reason=ev.Reason.MEMORY, message="512 MiB reached", variables_kept=True))
    assert err == "memory: 512 MiB reached. Variables were kept.\n"
    _, err, _ = played(
        ev.CellFinished(reason=ev.Reason.INTERRUPTED, message="Interrupted; variables kept.", variables_kept=True)
    )
    assert err == "interrupted: Interrupted; variables kept.\n"
    assert played(ev.CellFinished())[:2] == ("", "")


def test_escape_sequences_are_filtered_and_flushed_at_the_end():
    out, _, _ = played(ev.Stream(text="x\x1b"), ev.Stream(text="]0;t\a"), ev.Stream(text="\x1b["), ev.CellFinished())
    assert out.rstrip("\n") == "x\\x1b]0;t\\x1b["


def test_clear_output_erases_the_line():
    out, _, _ = played(ev.Stream(text="10 %"), ev.OutputCleared(wait=True), ev.Stream(text="20 %"), tty=True)
    assert out == "10 %\r\x1b[K20 %"
    out, _, _ = played(ev.Stream(text="10 %\n"), ev.OutputCleared(wait=True), ev.Stream(text="20 %\n"))
    assert out == "10 %\n20 %\n"


def test_pictures_are_described_where_they_cannot_be_shown():
    data = {"image/png": base64.b64encode(png()).decode(), "text/plain": "<Figure>"}
    out, _, view = played(ev.Display(data=data))
    assert out.startswith("[image/png, 8 by 4, ")
    assert view.images[0].data == png()


@pytest.mark.parametrize(
    ("env", "protocol"),
    [
        ({}, "words"),
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"KITTY_WINDOW_ID": "1", "NO_COLOR": "1"}, "words"),
        ({"TERM_PROGRAM": "iTerm.app", "TERM": "dumb"}, "words"),
    ],
)
def test_the_image_protocol_of_a_terminal(env, protocol):
    assert Terminal(Tty(), io.StringIO(), env).image_protocol == protocol
    assert Terminal(io.StringIO(), io.StringIO(), env).image_protocol == "words"


def test_image_protocols():
    image = Image(mime="image/png", data=png(600, 400) + b"\0" * 6000)
    kitty = terminal_image.rendered(image, "kitty")
    assert kitty.startswith("\x1b_Ga=T,f=100,m=1;")
    assert kitty.count("\x1b_G") == kitty.count("\x1b\\") > 1
    assert base64.b64encode(image.data).decode() in terminal_image.rendered(image, "iterm")


@pytest.mark.parametrize("protocol", ["kitty", "iterm"])
def test_an_image_that_the_terminal_must_not_get_is_described(monkeypatch, protocol):
    not_an_image = Image(mime="image/png", data=b"no picture")
    assert terminal_image.rendered(not_an_image, protocol) == "[image/png, 10 B]"
    monkeypatch.setattr(terminal_image, "MAX_PIXELS", 10)
    assert terminal_image.rendered(Image(mime="image/png", data=png()), protocol).startswith("[image/png, 8 by 4")


def test_kitty_describes_an_image_that_is_not_png():
    file = io.BytesIO()
    Pillow.new("RGB", (8, 4)).save(file, "JPEG")
    image = Image(mime="image/jpeg", data=file.getvalue())
    assert terminal_image.rendered(image, "kitty").startswith("[image/jpeg, 8 by 4, ")


HOSTILE = "a\x1b[2J\x1b]0;t\x07\x9b2J\u202eb\x1b[31mred"


@pytest.mark.parametrize("colour", [False, True])
def test_no_control_sequence_of_a_name_reaches_the_terminal(colour):
    terminal = Terminal(Tty(), Tty(), {"FORCE_COLOR": "1"} if colour else {"NO_COLOR": "1"})
    terminal.line(HOSTILE, "bold")
    terminal.message(HOSTILE, "red")
    terminal.json({"name": HOSTILE})
    terminal.json([HOSTILE], indent=0)
    shown = terminal.out.getvalue() + terminal.err.getvalue()
    assert not [each for each in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\u202e") if each in shown]
    assert ("\x1b" in terminal.out.getvalue()) == colour
    # The text of JSON is still JSON with the same value.
    assert json.loads(shown.partition("{")[2].partition("}")[0].join("{}"))["name"] == HOSTILE
