"""Code in a session is hostile: what it may give to the tools and agents of the caller's process, and show it."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image as pillow
from PIL import UnidentifiedImageError

from kernelsvc.client.values import Image
from kernelsvc.integrations.smolagents import CodeExecutor, _output

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\nshowpage\n%%EOF\n"


def agent(task: str, **options: Any) -> str:
    return f"{task} {options}"


cast("Any", agent).inputs = {"task": {"type": "string", "description": "what to do"}}
cast("Any", agent).description = "does it"


def test_code_gives_an_agent_no_argument_that_its_inputs_do_not_name() -> None:
    offer = CodeExecutor(cast("Any", None))._offer("agent", agent)
    assert offer.function(task="go") == "go {}"
    with pytest.raises(TypeError, match="no argument 'max_steps'"):
        offer.function(task="go", max_steps=10**9)


def test_pillow_reads_the_format_that_the_output_names_and_no_other() -> None:
    file = io.BytesIO()
    pillow.new("RGB", (2, 3)).save(file, "PNG")

    def shown(mime: str, data: bytes) -> Any:
        return _output(cast("Any", SimpleNamespace(images=[Image(mime=mime, data=data)], outputs=[])))

    assert shown("image/png", file.getvalue()).size == (2, 3)
    with pytest.raises(UnidentifiedImageError):
        shown("image/png", EPS)
    assert shown("image/svg+xml", b"<svg/>") is None
