"""The tools as JSON Schema, and in vendors' forms."""

from __future__ import annotations

import json

import jsonschema
import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.view.estimate import estimate
from kernelsvc.tools import CORE, FORMATS, TOOLS, tool_definitions
from kernelsvc.tools.definitions import HIDDEN, OLD_TOOLS, selected
from kernelsvc.tools.schema import described, input_schema, output_schema, place


@pytest.mark.parametrize("name", TOOLS)
def test_a_schema_is_whole_and_valid(name):
    for schema in (input_schema(TOOLS[name]), output_schema(TOOLS[name])):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        text = json.dumps(schema)
        assert "$ref" not in text
        assert '"null"' not in text
    given = input_schema(TOOLS[name])
    assert given["additionalProperties"] is False
    assert HIDDEN not in json.dumps(given)


def test_what_is_required_is_little():
    required = {name: input_schema(tool).get("required", []) for name, tool in TOOLS.items()}
    assert required["run_code"] == ["code"]
    assert required["variables"] == []
    assert required["read_output"] == []


def test_openai_and_anthropic():
    (first,) = tool_definitions("openai", ["run_code"])
    assert first["type"] == "function"
    assert first["function"]["parameters"]["required"] == ["code"]
    (first,) = tool_definitions("openai-responses", ["run_code"])
    assert (first["type"], first["name"], first["strict"]) == ("function", "run_code", False)
    (first,) = tool_definitions("anthropic", ["run_code"])
    assert first["input_schema"]["properties"]["code"]["type"] == "string"


def test_gemini_has_one_tool_with_its_own_types():
    (tool,) = tool_definitions("gemini")
    functions = {each["name"]: each for each in tool["functionDeclarations"]}
    assert set(functions) == set(TOOLS)
    listed = functions["export_notebook"]["parameters"]["properties"]
    assert listed["format"] == {"type": "STRING", "enum": ["html", "ipynb", "py"]}
    assert functions["read_output"]["parameters"]["properties"]["cell"]["type"] == "INTEGER"
    assert "additionalProperties" not in json.dumps(tool)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_every_tool(format):
    assert all(f'"{name}"' in json.dumps(tool_definitions(format)) for name in TOOLS)


def test_an_unknown_format_or_tool_says_what_there_is():
    with pytest.raises(BadRequest, match="anthropic"):
        tool_definitions("cobol")
    with pytest.raises(BadRequest, match="run_code"):
        tool_definitions("openai", ["run_cobol"])


def test_the_definitions_are_short():
    where = place(
        [{"name": "a", "preload": ["numpy", "matplotlib.pyplot"]}],
        {"default_template": "a", "limits": {"network": "none"}},
    )
    assert where == " Installed: numpy, matplotlib and what they need. No network: pip and downloads fail."
    assert "No network" in described(TOOLS["run_code"], where).about
    compact = {"separators": (",", ":")}
    assert estimate(json.dumps(tool_definitions("anthropic", [*CORE], where), **compact)) <= 800
    assert estimate(json.dumps(tool_definitions("anthropic", None, where), **compact)) <= 1100


def test_a_selection_of_tools():
    assert selected("core") == [*CORE]
    assert selected(None) == selected("all") == [*TOOLS]
    assert selected("wait, run_code") == ["run_code", "wait"]
    with pytest.raises(BadRequest, match="rollback"):
        selected("rollback")


def test_tools_of_earlier_versions_are_not_listed():
    assert not set(OLD_TOOLS) & set(TOOLS)


def test_a_model_reads_which_hosts_the_network_reaches():
    rules = {"allow": ["pypi.org", {"host": "db.example.com", "ports": [5432]}]}
    info = {"limits": {"network": rules}}
    assert place([], info) == " The network reaches only pypi.org, db.example.com."
    many = {"limits": {"network": {"allow": [f"a{n}.test" for n in range(10)]}}}
    assert place([], many).endswith("a7.test and 2 more.")
    assert place([], {"limits": {"network": "host"}}) == ""
