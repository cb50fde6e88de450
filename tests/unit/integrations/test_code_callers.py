"""Vendors' tool definitions that code may call."""

from __future__ import annotations

from typing import Any

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.integrations import anthropic, openai
from kernelsvc.integrations.code_callers import anthropic_tools, openai_tools, request_of

SCHEMA = {"type": "object", "properties": {"customer": {"type": "integer"}}, "required": ["customer"]}


def _anthropic(name: str, *callers: str, **more: Any) -> dict[str, Any]:
    made = {"name": name, "description": "Orders.", "input_schema": SCHEMA, **more}
    return {**made, "allowed_callers": [*callers]} if callers else made


def _openai(name: str, *callers: str, **more: Any) -> dict[str, Any]:
    made = {"type": "function", "name": name, "description": "Orders.", "parameters": SCHEMA, **more}
    return {**made, "allowed_callers": [*callers]} if callers else made


def find(customer: int) -> list[int]:
    return [customer]


@pytest.mark.parametrize(
    ("callers", "offered", "requested"),
    [
        ((), [], [{}]),
        (("direct",), [], [{"allowed_callers": ["direct"]}]),
        (("code_execution_20260120",), ["find"], []),
        (("direct", "code_execution_20250825"), ["find"], [{}]),
    ],
)
def test_anthropic(callers: tuple[str, ...], offered: list[str], requested: list[dict[str, Any]]) -> None:
    definition = _anthropic("find", *callers)
    offers = anthropic.offers([definition], {"find": find})
    assert [each.offer.tool for each in offers] == offered
    assert all(each.offer.parameters == SCHEMA and each.offer.description == "Orders." for each in offers)
    assert request_of(anthropic_tools([definition])) == [{**_anthropic("find"), **extra} for extra in requested]


def test_anthropics_own_tools_and_fields() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "allowed_callers": ["direct"]}
    code = _anthropic("find", "code_execution_20260120", defer_loading=True, input_examples=[{"customer": 1}])
    assert request_of(anthropic_tools([search, code])) == [search]
    (offer,) = anthropic.offers([search, code], {"find": find}, approval="always")
    assert (offer.offer.listed, offer.offer.examples, offer.offer.approval) == (False, [{"customer": 1}], "always")
    assert [each["name"] for each in anthropic.tools(["run_code"], also=[code])] == ["run_code"]
    assert anthropic.tools(["run_code"], also=[search])[-1] == search


@pytest.mark.parametrize(
    ("callers", "offered", "requested"),
    [
        ((), [], [{}]),
        (("programmatic",), ["find"], []),
        (("direct", "programmatic"), ["find"], [{}]),
    ],
)
def test_openai(callers: tuple[str, ...], offered: list[str], requested: list[dict[str, Any]]) -> None:
    flat = _openai("find", *callers, output_schema={"type": "array"})
    chat = {"type": "function", "function": {k: v for k, v in flat.items() if k != "type"}}
    for definition in (flat, chat):
        offers = openai.offers([definition], {"find": find})
        assert [each.offer.tool for each in offers] == offered
        assert all(each.offer.returns == {"type": "array"} for each in offers)
        found = request_of(openai_tools([definition, {"type": "programmatic_tool_calling"}]))
        assert [(each.get("function") or each)["name"] for each in found] == ["find"] * len(requested)
        assert "allowed_callers" not in str(found)


def test_openai_namespaces() -> None:
    crm = {"type": "namespace", "name": "crm", "tools": [_openai("find", "programmatic"), _openai("other")]}
    (offer,) = openai.responses.offers([crm], {"crm.find": find})
    assert offer.offer.tool == "crm.find"
    assert [each["name"] for each in request_of(openai_tools([crm]))] == ["other"]


def test_a_tool_for_code_needs_a_function() -> None:
    with pytest.raises(BadRequest, match="no function"):
        anthropic.offers([_anthropic("find", "code_execution_20260120")], {})
