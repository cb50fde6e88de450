"""Tool definitions of models' vendors that code may call: which are offered to sessions, and which stay in the request.

The vendors' own interpreters call an application's functions from code (``allowed_callers``). These functions turn the
same definitions into offers to a session, unchanged, so that code which ``run_code`` runs calls them as
``tools.NAME(...)``, without a trip to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from kernelsvc.client.offered import OfferedFunction, offered
from kernelsvc.errors import BadRequest

#: The program's functions by name.
Functions = Mapping[str, Callable[..., Any]]


class VendorTool(Struct, frozen=True, kw_only=True):
    """One definition in a request.

    Attributes:
        name: its name, within ``namespace``.
        definition: as the application wrote it.
        parameters: JSON schema of the arguments.
        returns: JSON schema of the result, if the vendor's format has one.
        deferred: whether it is found by a search only.
        from_code: whether code may call it.
        direct: whether the model may call it.
    """

    name: str
    definition: Mapping[str, Any]
    namespace: str = ""
    description: str = ""
    parameters: Mapping[str, Any]
    returns: Mapping[str, Any] | None = None
    examples: tuple[Any, ...] = ()
    deferred: bool = False
    from_code: bool = False
    direct: bool = True

    @property
    def full_name(self) -> str:
        """The name in code, with the namespace."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name


def offers_of(tools: Iterable[VendorTool], functions: Functions, **options: Any) -> list[OfferedFunction]:
    """Return the tools that code may call as offers.

    Args:
        tools: the definitions.
        functions: by name, or by namespace and name (``crm.find``). They take the arguments by name.
        options: fields of all offers, such as ``approval``.

    Raises:
        BadRequest: a tool that code may call has no function, or its name can't be offered.
    """
    found = []
    for tool in tools:
        if not tool.from_code:
            continue
        function = functions.get(tool.full_name) or functions.get(tool.name)
        if function is None:
            raise BadRequest(
                f"Code may call {tool.full_name!r}, and there is no function for it. Pass one by this name."
            )
        found.append(
            offered(
                function,
                name=tool.full_name,
                description=tool.description,
                parameters=tool.parameters,
                returns=tool.returns,
                **{"examples": [*tool.examples], "listed": not tool.deferred, **options},
            )
        )
    return found


def anthropic_tools(definitions: Iterable[Mapping[str, Any]]) -> list[VendorTool]:
    """Read definitions of Anthropic's Messages API. Tools of the vendor's own servers stay as they are."""
    return [_anthropic_tool(each) for each in definitions]


def _anthropic_tool(definition: Mapping[str, Any]) -> VendorTool:
    callers = definition.get("allowed_callers") or ["direct"]
    own = "input_schema" in definition
    from_code = own and any(str(each).startswith("code_execution_") for each in callers)
    kept = {name: value for name, value in definition.items() if name != "allowed_callers" or not from_code}
    return VendorTool(
        name=str(definition.get("name", "")),
        definition=kept,
        description=str(definition.get("description") or ""),
        parameters=definition.get("input_schema") or {"type": "object"},
        examples=tuple(definition.get("input_examples") or ()),
        deferred=bool(definition.get("defer_loading")),
        from_code=from_code,
        direct="direct" in callers,
    )


def openai_tools(definitions: Iterable[Mapping[str, Any]]) -> list[VendorTool]:
    """Read definitions of OpenAI's Responses API, or of Chat Completions (``{"type": "function", "function": ...}``).

    The tools of a namespace become single tools. ``programmatic_tool_calling`` is left out: the session replaces it.
    """
    found = []
    for each in definitions:
        if each.get("type") == "namespace":
            found += [_openai_tool(tool, str(each.get("name", ""))) for tool in each.get("tools") or ()]
        elif each.get("type") != "programmatic_tool_calling":
            found.append(_openai_tool(each, ""))
    return found


def _openai_tool(definition: Mapping[str, Any], namespace: str) -> VendorTool:
    inner: Mapping[str, Any] = definition.get("function") or definition
    callers = inner.get("allowed_callers") or ["direct"]
    from_code = definition.get("type") == "function" and "programmatic" in callers
    kept = dict(inner)
    if from_code:
        del kept["allowed_callers"]
    return VendorTool(
        name=str(inner.get("name", "")),
        namespace=namespace,
        definition={**definition, "function": kept} if "function" in definition else kept,
        description=str(inner.get("description") or ""),
        parameters=inner.get("parameters") or {"type": "object"},
        returns=inner.get("output_schema"),
        deferred=bool(inner.get("defer_loading")),
        from_code=from_code,
        direct="direct" in callers,
    )


def request_of(tools: Iterable[VendorTool]) -> list[dict[str, Any]]:
    """Return the definitions for a request: those that the model may call, without the mark for code."""
    return [dict(each.definition) for each in tools if each.direct]
