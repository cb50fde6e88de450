"""Tools of MCP servers as offers, by the settings."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.tool_calls.mcp_servers import McpServer, offer_of
from kernelsvc.model.tool_calls.offers import Offer


def _offer(tool: str = "get_issue", hints: tuple[bool, bool] = (True, True), **fields: Any) -> Offer:
    about = McpServer(command=["server"], **fields)
    parts = {"description": "", "parameters": {"type": "object"}, "returns": None}
    return offer_of("github", about, tool, read_only=hints[0], idempotent=hints[1], **parts)


@pytest.mark.parametrize(
    ("hints", "fields", "expected"),
    [
        ((True, True), {}, ("unknown", "always", False)),
        ((True, False), {"trusted_hints": True}, ("read", "never", True)),
        ((False, True), {"trusted_hints": True}, ("unknown", "always", True)),
        ((False, False), {"approval": {"get_*": "once_per_cell", "*": "never"}}, ("unknown", "once_per_cell", False)),
        ((False, False), {"approval": {"put_*": "never"}}, ("unknown", "always", False)),
    ],
)
def test_hints_count_only_if_they_are_trusted(hints: Any, fields: Any, expected: Any) -> None:
    offer = _offer(hints=hints, **fields)
    assert (offer.effects, offer.approval, offer.idempotent) == expected
    assert offer.tool == "github.get_issue"


def test_names_that_no_offer_may_have_and_settings_that_make_no_sense() -> None:
    with pytest.raises(BadRequest, match="can't be offered"):
        _offer("get issue")
    for wrong in ({}, {"command": ["x"], "url": "http://x"}, {"command": ["x"], "per": "session"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, McpServer)
