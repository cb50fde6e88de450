"""``POST /v1/responses``: the request. A field that would change the answer is refused, never ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.values import (
    CodeItem,
    Entry,
    FunctionItem,
    FunctionResult,
    InputMessage,
    ItemReference,
    MessageItem,
    Picture,
    ReasoningItem,
)

GiB = 1024**3
MEMORY = {"1g": GiB, "4g": 4 * GiB, "16g": 16 * GiB, "64g": 64 * GiB}
OUTPUTS, SEALED = "code_interpreter_call.outputs", "reasoning.encrypted_content"
#: Fields that are sent to the model's server under the same name.
_PASSED = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop")
#: Fields without an effect on the answer. The response repeats them.
_REPEATED = ("metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_READ = {
    "model", "input", "instructions", "tools", "tool_choice", "max_tool_calls", "parallel_tool_calls", "store",
    "max_output_tokens", "previous_response_id", "conversation", "include", "stream", "stream_options", "background",
    "text", "reasoning", "truncation", "service_tier", "top_logprobs", *_PASSED, *_REPEATED,
}  # fmt: skip
#: Most items of an input, tools, and characters of a text.
MAX_ITEMS, MAX_TOOLS, MAX_TEXT = 10_000, 128, 16 * 1024 * 1024


class CodeTool(msgspec.Struct, frozen=True, kw_only=True):
    """The tool ``code_interpreter``.

    Attributes:
        container: Id of the container. None for ``auto``.
        file_ids: Uploaded files to copy into the container.
        memory_bytes: Limit of its memory. None for the server's.
        no_network: Whether it must not have a network.
    """

    container: str | None = None
    file_ids: list[str] = []
    memory_bytes: int | None = None
    no_network: bool = False


class AnswerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for an answer, independent of the API.

    Attributes:
        model: The name in the request.
        input: The new entries.
        instructions: System text of this request. A later request does not repeat it.
        code: The code interpreter, if the model may use it.
        functions: The client's functions, as a chat completion takes them.
        force: ``required``, or the name of a tool that the first turn must call.
        may_call: Whether the model may call tools at all.
        allowed: Names of the tools that it may call. None for all.
        max_tool_calls: Most cells.
        parallel: Whether a turn may have several calls.
        max_output_tokens: Most tokens of all turns.
        previous: Id of the response before this one.
        conversation: Id of the conversation that the answer continues.
        store: Whether the response can be retrieved.
        outputs: Whether items have the outputs of cells.
        sealed: Whether reasoning comes encrypted, for a client that sends it again.
        stream: Whether events are sent.
        background: Whether the answer continues without the client.
        elide: Whether the server may omit old results.
        passed: Further fields for the model's server.
        repeated: Fields that the response repeats.
    """

    model: str
    input: list[Entry]
    instructions: str = ""
    code: CodeTool | None = None
    functions: list[dict[str, Any]] = []
    force: str | None = None
    may_call: bool = True
    allowed: list[str] | None = None
    max_tool_calls: int | None = None
    parallel: bool = True
    max_output_tokens: int | None = None
    previous: str | None = None
    conversation: str | None = None
    store: bool = True
    outputs: bool = False
    sealed: bool = False
    stream: bool = False
    background: bool = False
    elide: bool = False
    passed: dict[str, Any] = {}
    repeated: dict[str, Any] = {}


def refused(message: str, param: str, code: str | None = None) -> BadRequest:
    """Return the error for a field, with its name and OpenAI's code."""
    return BadRequest(message, param=param, openai_code=code)


def unsupported(name: str, why: str = "") -> BadRequest:
    """Return the error for a field that this server does not support."""
    return refused(f"This server does not support '{name}'{why}. Leave it out.", name, "unsupported_parameter")


class _Fields:
    """Reader of a JSON object's fields with their types."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise refused(f"'{where}' must be an object.", where)
        self.value, self._where = value, where

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """Return a field, or the default if it is missing or null."""
        given = self.value.get(name)
        if given is None:
            return default
        try:
            return msgspec.convert(given, kind)
        except msgspec.ValidationError as error:
            path = f"{self._where}.{name}".removeprefix("body.")
            raise refused(f"'{path}' is not valid: {error}.", path) from None

    def need(self, name: str, kind: Any) -> Any:
        """Return a field that must be there."""
        found = self.get(name, kind)
        if found is None:
            path = f"{self._where}.{name}".removeprefix("body.")
            raise refused(f"'{path}' is missing.", path, "missing_required_parameter")
        return found


def read_request(body: Any, new_id: Callable[[str], str]) -> AnswerRequest:
    """Read the body of ``POST /v1/responses``.

    Args:
        body: The decoded JSON.
        new_id: Makes ids of items that have none.

    Raises:
        BadRequest: A field is not valid or not supported. ``details`` has its name.
    """
    fields = _Fields(body, "body")
    for name, value in fields.value.items():
        if name not in _READ and value is not None:
            raise unsupported(name)
    files: list[str] = []
    entries = read_input(fields.value.get("input"), new_id, files)
    code, functions = _tools(fields.get("tools", list[dict[str, Any]], []))
    if code is not None and files:
        code = msgspec.structs.replace(code, file_ids=[*code.file_ids, *files])
    elif files:
        raise refused("A file in the input needs the tool 'code_interpreter'. Add it to 'tools'.", "input")
    force, may_call, allowed = _choice(fields.value.get("tool_choice"), code, functions)
    include = fields.get("include", list[str], [])
    for each in include:
        if each not in (OUTPUTS, SEALED):
            raise unsupported("include", f" of {each[:100]!r}")
    if fields.get("service_tier", str, "auto") not in ("auto", "default"):
        raise unsupported("service_tier", " other than 'auto'")
    background = fields.get("background", bool, False)
    store = fields.get("store", bool, True)
    if background and not store:
        raise refused("'background' needs 'store': the answer is read later.", "background")
    stream = fields.get("stream", bool, False)
    return AnswerRequest(
        model=fields.need("model", str),
        input=entries,
        instructions=fields.get("instructions", str, ""),
        code=code,
        functions=functions,
        force=force,
        may_call=may_call,
        allowed=allowed,
        max_tool_calls=_positive(fields, "max_tool_calls"),
        parallel=fields.get("parallel_tool_calls", bool, True),
        max_output_tokens=_positive(fields, "max_output_tokens"),
        previous=fields.get("previous_response_id", str),
        conversation=_conversation(fields),
        store=store,
        outputs=OUTPUTS in include,
        sealed=SEALED in include,
        stream=stream,
        background=background,
        elide=fields.get("truncation", Literal["auto", "disabled"], "disabled") == "auto",
        passed=_passed(fields),
        repeated=_repeated(fields),
    )


def _conversation(fields: _Fields) -> str | None:
    given = fields.value.get("conversation")
    if given is None:
        return None
    if fields.value.get("previous_response_id") is not None:
        message = "'conversation' and 'previous_response_id' exclude each other."
        raise refused(message, "conversation", "mutually_exclusive_parameters")
    named: str = given if isinstance(given, str) else _Fields(given, "conversation").need("id", str)
    return named


def _positive(fields: _Fields, name: str) -> int | None:
    value: int | None = fields.get(name, int)
    if value is not None and value < 1:
        raise refused(f"'{name}' must be at least 1.", name, "integer_below_min_value")
    return value


def _passed(fields: _Fields) -> dict[str, Any]:
    found = {name: fields.value[name] for name in _PASSED if fields.value.get(name) is not None}
    text = _Fields(fields.get("text", dict[str, Any], {}), "text")
    form = _Fields(text.get("format", dict[str, Any], {}), "text.format")
    kind = form.get("type", Literal["text", "json_object", "json_schema"], "text")
    if kind == "json_object":
        found["response_format"] = {"type": kind}
    elif kind == "json_schema":
        schema = {name: form.value[name] for name in ("name", "description", "schema", "strict") if name in form.value}
        found["response_format"] = {"type": kind, "json_schema": schema}
    verbosity = text.get("verbosity", Literal["low", "medium", "high"])
    if verbosity is not None:
        found["verbosity"] = verbosity
    effort = _Fields(fields.get("reasoning", dict[str, Any], {}), "reasoning").get("effort", str)
    if effort is not None:
        found["reasoning_effort"] = effort
    if fields.get("top_logprobs", int, 0):
        raise unsupported("top_logprobs")
    return found


def _repeated(fields: _Fields) -> dict[str, Any]:
    read_metadata(fields.value)
    names = ("tools", "tool_choice", "text", "reasoning", "temperature", "top_p", "truncation", *_REPEATED)
    found = {name: fields.value[name] for name in names if fields.value.get(name) is not None}
    if "tools" in found:
        found["tools"] = [_whole_tool(each) for each in found["tools"]]
    return found


def _whole_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as a response repeats it. OpenAPI of Open Responses: a function has each of these fields."""
    return {"description": None, "parameters": None, "strict": True, **tool} if tool["type"] == "function" else tool


def read_metadata(body: Any) -> dict[str, str]:
    """Read ``metadata`` of a response or conversation.

    Raises:
        BadRequest: It is not valid.
    """
    metadata: dict[str, str] = _Fields(body, "body").get("metadata", dict[str, str], {})
    if len(metadata) > 16 or any(len(name) > 64 or len(value) > 512 for name, value in metadata.items()):
        raise refused("'metadata' has at most 16 names of 64 and values of 512 characters.", "metadata")
    return metadata


# --- tools -------------------------------------------------------------------------------


def _tools(tools: list[dict[str, Any]]) -> tuple[CodeTool | None, list[dict[str, Any]]]:
    if len(tools) > MAX_TOOLS:
        raise refused(f"At most {MAX_TOOLS} tools are possible.", "tools")
    code: CodeTool | None = None
    functions: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        kind = tool.get("type")
        if kind == "code_interpreter":
            code = read_code_tool(tool, f"tools[{number}]")
        elif kind == "function":
            fields = _Fields(tool, f"tools[{number}]")
            function = {"name": fields.need("name", str)}
            for name in ("description", "parameters", "strict"):
                if tool.get(name) is not None:
                    function[name] = tool[name]
            functions.append({"type": "function", "function": function})
        else:
            shown = str(kind)[:100]
            raise refused(
                f"This server does not have the tool '{shown}'. It has 'code_interpreter' and 'function'.", "tools",
                "unsupported_value",
            )  # fmt: skip
    return code, functions


def read_code_tool(tool: dict[str, Any], where: str) -> CodeTool:
    """Read the tool ``code_interpreter``.

    Raises:
        BadRequest: A field is not valid or not supported.
    """
    container = tool.get("container")
    if container is None:
        return CodeTool()
    if isinstance(container, str):
        return CodeTool(container=container)
    fields = _Fields(container, f"{where}.container")
    if container.get("type", "auto") != "auto":
        raise refused("A container is an id, or has the type 'auto'.", f"{where}.container.type")
    memory, no_network = container_limits(container, f"{where}.container")
    return CodeTool(file_ids=fields.get("file_ids", list[str], []), memory_bytes=memory, no_network=no_network)


def container_limits(container: dict[str, Any], where: str) -> tuple[int | None, bool]:
    """Read ``memory_limit`` and ``network_policy``: bytes or None, and whether there must be no network.

    Raises:
        BadRequest: A value is not valid or not supported.
    """
    fields = _Fields(container, where)
    memory = fields.get("memory_limit", Literal["1g", "4g", "16g", "64g"])
    policy = _Fields(fields.get("network_policy", dict[str, Any], {"type": ""}), f"{where}.network_policy")
    if policy.value.get("type") not in ("", "disabled"):
        raise unsupported(f"{where}.network_policy", " other than 'disabled'")
    if container.get("skills"):
        raise unsupported(f"{where}.skills")
    return (None if memory is None else MEMORY[memory]), policy.value.get("type") == "disabled"


def _choice(
    choice: Any, code: CodeTool | None, functions: list[dict[str, Any]]
) -> tuple[str | None, bool, list[str] | None]:
    """Return the forced tool, whether tools may be called, and the allowed ones."""
    names = [each["function"]["name"] for each in functions] + (["python"] if code is not None else [])
    if choice in (None, "auto"):
        return None, True, None
    if choice == "none":
        return None, False, None
    if choice == "required":
        return "required", True, None
    fields = _Fields(choice, "tool_choice")
    kind = fields.value.get("type")
    if kind == "allowed_tools":
        allowed = [_chosen(each, names) for each in fields.need("tools", list[dict[str, Any]])]
        mode = fields.get("mode", Literal["auto", "required"], "auto")
        return ("required" if mode == "required" else None), True, allowed
    return _chosen(fields.value, names), True, None


def _chosen(choice: dict[str, Any], names: list[str]) -> str:
    kind = choice.get("type")
    name = "python" if kind == "code_interpreter" else str(choice.get("name")) if kind == "function" else ""
    if name not in names:
        raise refused("'tool_choice' names a tool that is not in 'tools'.", "tool_choice", "invalid_value")
    return name


# --- input -------------------------------------------------------------------------------


def read_input(given: Any, new_id: Callable[[str], str], files: list[str]) -> list[Entry]:
    """Read ``input``: a text or a list of items.

    Args:
        given: The decoded JSON.
        new_id: Makes ids of items that have none.
        files: Gets the ids of files in it.

    Raises:
        BadRequest: An item is not valid or not supported.
    """
    if isinstance(given, str):
        return [InputMessage(role="user", text=given, id=new_id("msg"))]
    if not isinstance(given, list):
        raise refused("'input' must be a text or a list of items.", "input", "missing_required_parameter")
    if len(given) > MAX_ITEMS:
        raise refused(f"'input' has more than {MAX_ITEMS} items.", "input")
    return [_item(each, f"input[{number}]", new_id, files) for number, each in enumerate(given)]


def _item(given: Any, where: str, new_id: Callable[[str], str], files: list[str]) -> Entry:
    fields = _Fields(given, where)
    kind = fields.value.get("type", "message")
    item_id = fields.get("id", str) or ""
    match kind:
        case "message":
            return _message(fields, where, item_id or new_id("msg"), files)
        case "reasoning":
            texts = [*fields.get("content", list[dict[str, Any]], []), *fields.get("summary", list[dict[str, Any]], [])]
            text = "".join(str(each.get("text", "")) for each in texts)
            sealed = fields.get("encrypted_content", str, "")
            return ReasoningItem(id=item_id or new_id("rs"), status="completed", text=text, sealed=sealed)
        case "code_interpreter_call":
            outputs = fields.get("outputs", list[dict[str, Any]], [])
            return CodeItem(
                id=item_id or new_id("ci"),
                call_id=item_id,
                status="completed",
                code=fields.get("code", str, ""),
                container=fields.get("container_id", str, ""),
                result="".join(str(each.get("logs", "")) for each in outputs),
            )
        case "function_call":
            return FunctionItem(
                id=item_id or new_id("fc"), call_id=fields.need("call_id", str), name=fields.need("name", str),
                status="completed", arguments=fields.get("arguments", str, "{}"),
            )  # fmt: skip
        case "function_call_output":
            output = fields.value.get("output")
            text = output if isinstance(output, str) else json.dumps(output)
            return FunctionResult(call_id=fields.need("call_id", str), output=text, id=item_id or new_id("fco"))
        case "item_reference":
            return ItemReference(id=fields.need("id", str))
        case _:
            raise refused(f"'{where}' has the type '{str(kind)[:100]}', which this server does not read.", where)


def _message(fields: _Fields, where: str, item_id: str, files: list[str]) -> Entry:
    role = fields.need("role", Literal["user", "assistant", "system", "developer"])
    content = fields.value.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise refused(f"'{where}.content' must be a text or a list of parts.", f"{where}.content")
    texts: list[str] = []
    pictures: list[Picture] = []
    for number, part in enumerate(parts):
        inner = _Fields(part, f"{where}.content[{number}]")
        match inner.value.get("type"):
            case "input_text" | "output_text" | "text":
                texts.append(inner.need("text", str))
            case "refusal":
                texts.append(inner.need("refusal", str))
            case "input_image":
                pictures.append(_picture(inner, f"{where}.content[{number}]"))
            case "input_file" if inner.value.get("file_id"):
                files.append(inner.need("file_id", str))
            case _:
                raise refused("This server reads texts, pictures as data URIs, and files by their id.", where)
    text = "\n".join(texts) if role != "assistant" else "".join(texts)
    if role == "assistant":
        return MessageItem(id=item_id, status="completed", text=text)
    return InputMessage(role="system" if role == "developer" else role, text=text, pictures=pictures, id=item_id)


def _picture(inner: _Fields, where: str) -> Picture:
    url = inner.get("image_url", str)
    if url is None or not url.startswith("data:image/"):
        # This server fetches no address that a client names.
        raise refused("A picture must be a data URI: 'data:image/png;base64,...'.", f"{where}.image_url")
    return Picture(url)
