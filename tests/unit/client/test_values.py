import base64
import json

import pytest

from kernelsvc.client.values import Cell, CellFailed, UnknownEvent, event_of, images_of
from kernelsvc.errors import KernelsvcError
from kernelsvc.model import events as ev
from kernelsvc.model.objects import CellState, SeqRange


def cell(**fields):
    defaults = {"id": "c", "session": "s", "code": "", "state": CellState.FINISHED, "seq": SeqRange(first=1, last=2)}
    return Cell(**(defaults | fields))


def png(data=b"\x89PNG"):
    return {"output_type": "display_data", "data": {"image/png": base64.b64encode(data).decode(), "text/plain": "x"}}


def test_images_one_for_each_output():
    svg = {"output_type": "display_data", "data": {"image/svg+xml": ["<svg>", "</svg>"]}}
    text = {"output_type": "stream", "name": "stdout", "text": "x"}
    images = cell(outputs=[png(), text, svg]).images
    assert [(image.mime, image.data, image.suffix) for image in images] == [
        ("image/png", b"\x89PNG", ".png"),
        ("image/svg+xml", b"<svg></svg>", ".svg"),
    ]
    assert images[0]._repr_mimebundle_() == {"image/png": "iVBORw=="}
    assert images[1]._repr_mimebundle_() == {"image/svg+xml": "<svg></svg>"}


@pytest.mark.parametrize("value", [None, 3, "ä", "a", {"x": 1}])
def test_what_is_no_image_is_left_out(value):
    assert images_of({"image/png": value}) == []


def test_a_cell_without_an_error_of_its_own_says_the_cause():
    with pytest.raises(CellFailed, match=r"ended with timeout: 3 s are over") as caught:
        cell(reason=ev.Reason.TIMEOUT, message="3 s are over").raise_for_error()
    assert isinstance(caught.value, KernelsvcError)


def test_an_event_of_a_newer_server():
    raw = json.dumps({"session": "s", "seq": 7, "at": "", "cell": "c", "type": "teleported", "to": "Mars"}).encode()
    event = event_of(raw)
    assert isinstance(event, UnknownEvent)
    assert (event.seq, event.cell, event.data["to"]) == (7, "c", "Mars")
