"""Settings of models and of their answers. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model behind an OpenAI-compatible server, which answers with a code interpreter of this server.

    Attributes:
        url: base address of the model's server, such as http://gpu1:8000/v1. Only these addresses are ever called.
        model: the model's name there. Empty means the name in the request.
        key_env: environment variable with the key for that server.
        key_file: file with the key. Its last newline does not count.
        api: the API of the model's server: chat completions (chat), or OpenAI's Responses (responses).
        tools: native sends the tool's definition. fence has a model without tool calls write a block of code.
        vision: whether the model reads pictures.
        reasoning: which earlier reasoning the model gets again: all (keep), this answer's (turn) or none (drop).
        reasoning_as: how clients see reasoning: as its text, as a summary, or not at all (none).
        max_turns: most calls of the model for one answer.
        max_seconds: most seconds of one answer.
        max_tool_text: most characters of one result that the model reads.
        context_tokens: size of the model's context. Old results are left out when it is nearly full.
        extra: more fields of each request to the model's server.
        principals: names of the principals that may use it, with * as a wildcard.
    """

    url: Annotated[str, Meta(pattern=r"^https?://[^/@\s?#]+(/[^@\s?#]*)?$(?!\n)")]
    model: str = ""
    key_env: Annotated[str, Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$(?!\n)")] = ""
    key_file: str = ""
    api: Literal["chat", "responses"] = "chat"
    tools: Literal["native", "fence"] = "native"
    vision: bool = False
    reasoning: Literal["keep", "turn", "drop"] = "turn"
    reasoning_as: Literal["text", "summary", "none"] = "text"
    max_turns: Annotated[int, Meta(ge=1, le=1000)] = 30
    max_seconds: Annotated[float, Meta(gt=0)] = 900.0
    max_tool_text: Annotated[int, Meta(ge=200, le=1_000_000)] = 20_000
    context_tokens: Annotated[int, Meta(ge=1000)] = 131_072
    extra: dict[str, Any] = {}
    principals: list[str] = msgspec.field(default_factory=lambda: ["*"])


class AnswerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules for the answers of models. They have an effect only if ``models`` names a model."""

    expired: Literal["new", "error"] = "new"
    store_days: float = 30.0
    idle_seconds: float = 1200.0
    max_running: int = 100
    max_running_per_principal: int = 20


ANSWER_HELP: dict[str, tuple[str, str | None]] = {
    "expired": (
        "What follows if the container of an earlier answer has ended: a new one (new), and the model reads that the "
        "variables are gone, or an error (error).",
        None,
    ),
    "store_days": ("Time for which answers and uploaded files are kept.", "days"),
    "idle_seconds": ("Idle time after which a container without expires_after ends.", "seconds"),
    "max_running": ("Answers at the same time.", None),
    "max_running_per_principal": ("Answers at the same time of one principal.", None),
}
