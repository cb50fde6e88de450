"""``/v1/conversations``: conversations and their items."""

from __future__ import annotations

from typing import Any

from kernelsvc.answers.answers import new_id
from kernelsvc.answers.conversations import MAX_ADDED, conversation_json, items_json
from kernelsvc.errors import BadRequest
from kernelsvc.model.answers.values import CodeItem, Entry
from kernelsvc.protocol.openai.requests import OUTPUTS, read_input, read_metadata, unsupported
from kernelsvc.server.openai.handler import OpenAiHandler


def _entries(given: Any) -> list[Entry]:
    """Read the items that a client adds.

    Raises:
        BadRequest: They are not valid, or too many.
    """
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > MAX_ADDED:
        raise BadRequest(f"'items' is a list of at most {MAX_ADDED} items.", param="items")
    files: list[str] = []
    entries = read_input(given, new_id, files)
    if files:
        raise BadRequest("A conversation's item can't have a file. Send it with a response.", param="items")
    return entries


class ConversationsHandler(OpenAiHandler):
    """Handler of ``/v1/conversations``."""

    route = "/v1/conversations"

    async def post(self) -> None:
        """Create a conversation."""
        self.auth_scope("run")
        body = self.json_body() if self.body() else {}
        if not isinstance(body, dict):
            raise BadRequest("The body is not an object.")
        for name in body:
            if name not in ("items", "metadata"):
                raise unsupported(name)
        entries, metadata = _entries(body.get("items")), read_metadata(body)
        self.answer(
            conversation_json(
                self.answers.conversations.create(self.who.name, self.answers.new_id("conv"), metadata, entries)
            )
        )


class ConversationHandler(OpenAiHandler):
    """Handler of ``/v1/conversations/{id}``."""

    route = "/v1/conversations/{id}"

    async def get(self, conversation: str) -> None:
        """Retrieve a conversation."""
        self.auth_scope("read")
        async with self.context.turn_of(self.who):
            self.answer(conversation_json(await self.answers.conversations.read(self.who.name, conversation)))

    async def post(self, conversation: str) -> None:
        """Replace the metadata of a conversation."""
        self.auth_scope("run")
        metadata = read_metadata(self.json_body())
        async with self.context.turn_of(self.who):
            self.answer(conversation_json(self.answers.conversations.update(self.who.name, conversation, metadata)))

    async def delete(self, conversation: str) -> None:
        """Erase a conversation. Its responses stay."""
        self.auth_scope("run")
        async with self.context.turn_of(self.who):
            await self.answers.conversations.read(self.who.name, conversation)
        self.answers.store.remove(self.who.name, conversation)
        self.answer({"id": conversation, "object": "conversation.deleted", "deleted": True})


class ConversationItemsHandler(OpenAiHandler):
    """Handler of ``/v1/conversations/{id}/items``."""

    route = "/v1/conversations/{id}/items"

    async def add_outputs(self, items: list[dict[str, Any]]) -> None:
        """Add the outputs of cells to items, if the query asks for them."""
        include = [*self.get_query_arguments("include"), *self.get_query_arguments("include[]")]
        if any(each != OUTPUTS for each in include):
            raise BadRequest(f"'include' can be {OUTPUTS!r}.", param="include")
        for each in items if include else []:
            if each["type"] == "code_interpreter_call":
                item = CodeItem(id=each["id"], container=each["container_id"])
                each["outputs"] = await self.answers.outputs(self.who, item)

    async def post(self, conversation: str) -> None:
        """Add items."""
        self.auth_scope("run")
        body = self.json_body()
        entries = _entries(body.get("items") if isinstance(body, dict) else None)
        async with self.context.turn_of(self.who):
            found = self.answers.conversations.add(self.who.name, conversation, entries)
        items = items_json(found, entries)
        await self.add_outputs(items)
        self.answer(self.list_of(items[::-1], limit=MAX_ADDED, order="asc"))

    async def get(self, conversation: str) -> None:
        """List the items."""
        self.auth_scope("read")
        async with self.context.turn_of(self.who):
            page = await self.answers.conversations.page(self.who.name, conversation, self.asked_page())
            await self.add_outputs(page["data"])
            await self.answer_page(page)


class ConversationItemHandler(ConversationItemsHandler):
    """Handler of ``/v1/conversations/{id}/items/{item}``."""

    route = "/v1/conversations/{id}/items/{item}"
    post = OpenAiHandler.post  # type: ignore[assignment]  # items are added to the list

    async def get(self, conversation: str, item: str) -> None:  # type: ignore[override]
        """Retrieve an item."""
        self.auth_scope("read")
        async with self.context.turn_of(self.who):
            found = await self.answers.conversations.item(self.who.name, conversation, item)
        await self.add_outputs([found])
        self.answer(found)

    async def delete(self, conversation: str, item: str) -> None:
        """Erase an item."""
        self.auth_scope("run")
        async with self.context.turn_of(self.who):
            self.answer(conversation_json(self.answers.conversations.remove_item(self.who.name, conversation, item)))
