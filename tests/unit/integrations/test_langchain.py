"""Code in a session is hostile: what it may give to LangChain tools, which run in the caller's process."""

from __future__ import annotations

from typing import Any

import pytest

from kernelsvc.integrations import langchain


def schema(*names: str) -> Any:
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


class Read:
    """A tool with an argument that the application injects, as ``langchain_core.tools.BaseTool`` describes it."""

    name, description = "read", "Reads."
    args_schema, tool_call_schema = schema("path", "user"), schema("path")

    async def ainvoke(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments


async def test_code_gives_no_argument_that_the_application_injects() -> None:
    (offer,) = langchain.offers([Read()])
    assert [*offer.offer.parameters["properties"]] == ["path"]
    assert await offer.function(path="a") == {"path": "a"}
    for more in ({"user": "other"}, {"type": "tool_call", "args": {}, "id": ""}):
        with pytest.raises(TypeError, match="has no argument"):
            await offer.function(path="a", **more)
