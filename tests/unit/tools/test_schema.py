"""The tools as JSON Schema, and in vendors' forms."""

from __future__ import annotations

import json

import jsonschema
import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.tools import FORMATS, TOOLS, tool_definitions
from kernelsvc.tools.schema import input_schema, output_schema


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
    assert all(each.get("description") for each in given["properties"].values())


def test_what_is_required_is_little():
    required = {name: input_schema(tool)["required"] for name, tool in TOOLS.items()}
    assert required["run_code"] == ["code"]
    assert required["variables"] == []
    assert required["read_output"] == ["cell"]


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
    listed = functions["read_output"]["parameters"]["properties"]
    assert listed["name"] == {
        "type": "STRING", "description": "The stream.", "enum": ["stderr", "stdout"], "default": "stdout",
    }  # fmt: skip
    assert "additionalProperties" not in json.dumps(tool)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_every_tool(format):
    assert all(f'"{name}"' in json.dumps(tool_definitions(format)) for name in TOOLS)


def test_an_unknown_format_or_tool_says_what_there_is():
    with pytest.raises(BadRequest, match="anthropic"):
        tool_definitions("cobol")
    with pytest.raises(BadRequest, match="run_code"):
        tool_definitions("openai", ["run_cobol"])
