"""The chunks of a streamed chat completion, folded into the pieces of a model's turn.

Servers differ: calls without an index, or all with index 0, whole calls in one chunk, arguments as an object, reasoning
under two names or in the text, a last chunk without choices. A call decides what it is, not ``finish_reason``.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Literal

import msgspec

from kernelsvc.errors import KernelsvcError, TooLarge
from kernelsvc.model.answers.values import (
    ArgumentsPiece,
    CallBegan,
    CallEnded,
    ModelFault,
    ModelPiece,
    ReasoningPiece,
    TextPiece,
    TokenUsage,
)
from kernelsvc.protocol.jupyter import check_json
from kernelsvc.protocol.openai.code_text import CodeText
from kernelsvc.protocol.openai.text_split import TextSplitter

#: The name of the tool, and those under which models know it from their training.
TOOL_NAME = "python"
ALIASES = {TOOL_NAME, "code_interpreter", "functions.python", "ipython", "execute_python", "run_python"}
#: Most calls of one turn, and changes between text and reasoning. Most characters of one call's arguments, and of a
#: turn.
MAX_CALLS, MAX_CHANGES, MAX_ARGUMENTS, MAX_TURN = 128, 500, 4 * 1024 * 1024, 8 * 1024 * 1024
#: Characters of one call's arguments that are parsed before its end, the same ones several times.
MAX_PARSED = 16 * 1024 * 1024
_TEXTS = (TextPiece, ReasoningPiece, ArgumentsPiece)
#: Characters of an event above which its depth and number of values are looked at first.
_LARGE_EVENT = 64 * 1024


class _OpenCall:
    """A call whose arguments arrive."""

    def __init__(self, key: int, call_id: str | None, name: str, *, runs_code: bool) -> None:
        self.key, self.call_id, self.name, self.runs_code = key, call_id, name, runs_code
        self.code = CodeText()
        self.ended = False
        self._parsed = 0

    def is_json(self) -> bool:
        """Return whether the arguments so far are JSON. Asked for each piece of a server that repeats the name."""
        if not self.code.last.rstrip().endswith(("}", "]", '"')) or self._parsed > MAX_PARSED:
            return False
        self._parsed += self.code.size
        try:
            json.loads(self.code.raw)
        except (ValueError, RecursionError):
            return False
        return True


class ChatTurn:
    """Folder of one streamed chat completion.

    Args:
        turn: Number of the turn, for ids of calls that have none.
        functions: Names of the client's own functions.
        code: Whether the model may run code.
        fences: Whether fenced blocks are calls.
        calls_only: Whether to drop text and reasoning, because an earlier attempt has sent them.

    Attributes:
        usage: Tokens, as far as the server has sent their numbers.
        cut: Whether the model reached a limit of tokens.
        fault: The error that the server sent in place of a chunk.
        fenced: Whether a fenced block has ended. The rest of the turn is of no use.
        size: Characters of text, reasoning and arguments.
    """

    def __init__(
        self, turn: int, functions: Collection[str], *, code: bool, fences: bool, calls_only: bool = False
    ) -> None:
        self.usage = TokenUsage()
        self.cut = False
        self.fault: ModelFault | None = None
        self.fenced = False
        self._turn, self._functions, self._runs_code = turn, functions, code
        self._splitter = TextSplitter(fences=fences and code)
        self._calls: list[_OpenCall] = []
        self._at_index: dict[int, _OpenCall] = {}
        self._fence: _OpenCall | None = None
        self._calls_only, self._nameless = calls_only, False
        self.size = self._changes = 0
        self._last: type[ModelPiece] | None = None

    @property
    def broken(self) -> bool:
        """Whether the server has announced a call, and none has arrived.

        Parsers of some servers lose the name in a stream, and send it in a whole answer.
        """
        return self._nameless and not self._calls

    def feed(self, data: str) -> list[ModelPiece]:
        """Take the data of one event.

        Raises:
            TooLarge: The turn or a call exceeds a limit.
        """
        if data.strip() in ("[DONE]", "") or self.fault is not None:
            return []
        try:
            if len(data) > _LARGE_EVENT:
                check_json(data.encode())
            chunk = _decoded(data)
        except (ValueError, RecursionError, KernelsvcError):
            self.fault = ModelFault(code="model_error", message="The model's server sent an event that is not JSON.")
            return []
        if not isinstance(chunk, dict):
            return []
        if chunk.get("error"):
            self.fault = fault_of(chunk["error"], 502)
            return []
        if isinstance(chunk.get("usage"), dict):
            self.usage = _usage(chunk["usage"])
        found: list[ModelPiece] = []
        choices = chunk.get("choices")
        if choices and isinstance(choices, list) and isinstance(choices[0], dict):
            found = self._choice(choices[0])
        self._count(found)
        if self._calls_only:
            return [each for each in found if not isinstance(each, TextPiece | ReasoningPiece)]
        return found

    def _count(self, pieces: list[ModelPiece]) -> None:
        for each in pieces:
            if isinstance(each, _TEXTS):
                self.size += len(each.text)
            if not isinstance(each, ArgumentsPiece) and type(each) is not self._last:
                self._last = type(each)
                self._changes += 1
        if self.size > MAX_TURN:
            raise TooLarge(f"The model's turn exceeds {MAX_TURN} characters.")
        if self._changes > MAX_CHANGES:
            raise TooLarge(f"The model's turn has more than {MAX_CHANGES} parts.")

    def _choice(self, choice: dict[str, Any]) -> list[ModelPiece]:
        # A server that was asked for a stream and sends a whole answer has a message in place of the delta.
        delta = choice.get("delta") or choice.get("message")
        found: list[ModelPiece] = []
        if isinstance(delta, dict):
            reasoning = delta.get("reasoning_content") or delta.get("reasoning")
            if isinstance(reasoning, str) and reasoning:
                found.append(ReasoningPiece(reasoning))
            if isinstance(delta.get("content"), str) and delta["content"]:
                found += self._parts(self._splitter.feed(delta["content"]))
            calls = delta.get("tool_calls")
            for position, call in enumerate(calls if isinstance(calls, list) else []):
                if isinstance(call, dict):
                    found += self._call(call, position)
        if choice.get("finish_reason") == "length":
            self.cut = True
        elif choice.get("finish_reason") == "tool_calls" and not self._calls:
            self._nameless = True
        return found

    def _parts(self, parts: list[Any]) -> list[ModelPiece]:
        found: list[ModelPiece] = []
        for kind, text in parts:
            if kind == "text":
                found.append(TextPiece(text))
            elif kind == "reasoning":
                found.append(ReasoningPiece(text))
            elif kind == "code_begins":
                self._fence = self._open(None, TOOL_NAME)
                found.append(self._began(self._fence))
            elif self._fence is not None and kind == "code":
                self._fence.code.add(text)
                found.append(ArgumentsPiece(self._fence.key, text))
            elif self._fence is not None:
                code = self._fence.code.raw
                self._fence.ended = self.fenced = True
                found.append(CallEnded(key=self._fence.key, arguments=code, code=code))
        return found

    def _call(self, call: dict[str, Any], position: int) -> list[ModelPiece]:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        name, call_id = function.get("name"), call.get("id")
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else "" if arguments is None else json.dumps(arguments)
        given = call.get("index")
        index = given if isinstance(given, int) else position
        current = self._at_index.get(index)
        found: list[ModelPiece] = []
        if current is None or self._is_new(current, name, call_id):
            if not isinstance(name, str) or not name:
                self._nameless = True
                return []  # a piece of no call
            for other in self._calls:
                found += self._end(other)
            current = self._at_index[index] = self._open(call_id, name)
            found.append(self._began(current))
        return found + self._grow(current, text)

    @staticmethod
    def _is_new(current: _OpenCall, name: Any, call_id: Any) -> bool:
        if call_id and current.call_id:
            return bool(call_id != current.call_id)
        if not name:
            return False
        return name != current.name or current.ended or current.is_json()

    def _open(self, call_id: Any, name: str) -> _OpenCall:
        if len(self._calls) >= MAX_CALLS:
            raise TooLarge(f"The model made more than {MAX_CALLS} calls in one turn.")
        runs_code = self._runs_code and name in ALIASES and name not in self._functions
        made = _OpenCall(len(self._calls), str(call_id)[:128] if call_id else None, name[:128], runs_code=runs_code)
        self._calls.append(made)
        return made

    def _began(self, call: _OpenCall) -> CallBegan:
        # Made of the numbers of turn and call, so that the same turn gives the same request again.
        call_id = call.call_id or f"call_{self._turn}_{call.key}"
        return CallBegan(key=call.key, call_id=call_id, name=call.name, runs_code=call.runs_code)

    def _grow(self, call: _OpenCall, text: str) -> list[ModelPiece]:
        if not text or call.ended:
            return []
        if call.code.size + len(text) > MAX_ARGUMENTS:
            raise TooLarge("The arguments of the model's call exceed 4 MiB.")
        if not call.runs_code:
            call.code.add(text)
            return [ArgumentsPiece(call.key, text)]
        new = call.code.feed(text)
        found: list[ModelPiece] = [ArgumentsPiece(call.key, new)] if new else []
        return found + (self._end(call) if call.code.complete else [])

    def _end(self, call: _OpenCall) -> list[ModelPiece]:
        if call.ended:
            return []
        call.ended = True
        if not call.runs_code:
            return [CallEnded(key=call.key, arguments=call.code.raw or "{}")]
        code, problem = call.code.end()
        return [CallEnded(key=call.key, arguments=call.code.raw, code=code, problem=problem)]

    def end(self) -> list[ModelPiece]:
        """Return the pieces that the end of the stream completes. Calls that a limit has cut stay open."""
        found = self._parts(self._splitter.end()) if not (self.cut and self._fence) else []
        if not self.cut:
            for call in self._calls:
                found += self._end(call)
        return found


def _decoded(data: str) -> Any:
    """Decode an event. Each token is one, so that the faster decoder is tried first."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError):
        # It refuses half of a surrogate pair, which servers send whose tokens are parts of a character. No event for
        # a client could have one, and the pieces can't be told from two halves of different characters.
        return json.loads(json.dumps(json.loads(data), ensure_ascii=False).encode("utf-8", "replace"))


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _usage(given: dict[str, Any]) -> TokenUsage:
    of_input, of_output = given.get("prompt_tokens_details"), given.get("completion_tokens_details")
    return TokenUsage(
        input=_number(given.get("prompt_tokens")),
        output=_number(given.get("completion_tokens")),
        cached=_number(of_input.get("cached_tokens")) if isinstance(of_input, dict) else 0,
        reasoning=_number(of_output.get("reasoning_tokens")) if isinstance(of_output, dict) else 0,
    )


def learned_reasoning(present: str, message: str) -> Literal["keep", "drop"] | None:
    """Return which reasoning a server wants to get back, as its refusal of a request says. None if it does not.

    Args:
        present: The rule of the request: ``keep``, ``turn`` or ``drop``.
        message: The refusal.
    """
    said = message.lower()
    if "reasoning" not in said:
        return None
    if any(each in said for each in ("missing", "must be", "required", "passed back")):
        return "keep" if present != "keep" else None
    return "drop" if present != "drop" else None


_CONTEXT = ("context_length", "context length", "context size", "context window", "maximum context", "too many tokens")


def fault_of(error: Any, status: int, retry_after: str | None = None) -> ModelFault:
    """Return the fault for an error of a model's server.

    Args:
        error: The value of ``error`` in its response, or the response's text.
        status: Its HTTP status.
        retry_after: Its header of this name.
    """
    about = error if isinstance(error, dict) else {"message": str(error)}
    message = str(about.get("message") or "")[:1000]
    told = f"{about.get('code')} {about.get('type')} {message}".lower()
    if any(each in told for each in _CONTEXT):
        return ModelFault(code="context_length_exceeded", message=message, http_status=400)
    if status == 429:
        return ModelFault(
            code="rate_limit_exceeded", message="The model's server is busy. Try again later.", http_status=429,
            retry_after=retry_after,
        )  # fmt: skip
    if status in (401, 403):
        # Its message may quote the key.
        return ModelFault(
            code="server_error", message="The model's server refused the key. Tell this server's operator."
        )
    if status == 404:
        message = "The model's server does not have this model."
        return ModelFault(code="model_not_found", message=message, http_status=404)
    if 400 <= status < 500 and status != 408:
        message = message or "The model's server refused the request."
        return ModelFault(code="invalid_prompt", message=message, http_status=400)
    return ModelFault(code="server_error", message=message or "The model's server failed.", repeatable=status >= 500)


def as_fault(error: KernelsvcError) -> ModelFault:
    """Return the fault for an error of this server."""
    code = {"quota_exceeded": "rate_limit_exceeded", "at_capacity": "rate_limit_exceeded"}.get(error.code, error.code)
    status = 429 if code == "rate_limit_exceeded" else error.http_status
    return ModelFault(code=code, message=error.message, http_status=status)
