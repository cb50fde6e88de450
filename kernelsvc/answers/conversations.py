"""Conversations: entries that responses append to, so that a client names a conversation instead of a response."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from kernelsvc.answers.kept import AnswerStore, ConversationOutline, KeptConversation, KeptResponse
from kernelsvc.errors import BadRequest, Conflict, NotFound
from kernelsvc.model.answers.values import Entry, ReasoningItem, is_shown
from kernelsvc.protocol.openai.lists import page_of
from kernelsvc.protocol.openai.responses import item_json

#: Most entries of a conversation, and of one request that adds some. Most bytes of a conversation.
MAX_ENTRIES, MAX_ADDED, MAX_BYTES = 10_000, 20, 64 * 1024 * 1024


class Conversations:
    """The conversations of all principals.

    Args:
        store: The directory of kept objects.
        running: Ids of the answers that run.
    """

    def __init__(self, store: AnswerStore, running: Collection[str]) -> None:
        self._store, self._running = store, running

    def create(self, principal: str, named: str, metadata: dict[str, str], entries: list[Entry]) -> KeptConversation:
        """Create a conversation.

        Raises:
            QuotaExceeded: See ``AnswerStore.check_room``.
        """
        self._store.check_room(principal)
        made = KeptConversation(id=named, created=int(time.time()), metadata=metadata, entries=entries)
        self._store.put_conversation(principal, made)
        return made

    def find(self, principal: str, named: str) -> KeptConversation:
        """Return a conversation. A response that the server did not complete before a crash is appended first.

        Raises:
            NotFound: The principal has no such conversation.
        """
        found = self._store.conversation(principal, named)
        if found.pending is not None and found.pending not in self._running:
            try:
                found.append(self._store.response(principal, found.pending))
            except NotFound:
                found.pending = None
            self._store.put_conversation(principal, found)
        return found

    async def read(self, principal: str, named: str) -> ConversationOutline:
        """Return a conversation as ``find`` does, with its entries as JSON. A thread reads it. Safe to cancel.

        Raises:
            NotFound: The principal has no such conversation.
        """
        found = await asyncio.to_thread(self._store.conversation_outline, principal, named)
        if found.pending is None or found.pending in self._running:
            return found
        self.find(principal, named)
        return await asyncio.to_thread(self._store.conversation_outline, principal, named)

    async def page(self, principal: str, named: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of the items, without outputs of cells. A thread reads them. Safe to cancel.

        Raises:
            NotFound: The principal has no such conversation.
            BadRequest: See ``page_of``.
        """
        found = await self.read(principal, named)
        return await asyncio.to_thread(page_of, found.entries[::-1], asked, functools.partial(_show, found.container))

    async def item(self, principal: str, named: str, item: str) -> dict[str, Any]:
        """Return an item, without outputs of cells. A thread reads it. Safe to cancel.

        Raises:
            NotFound: There is no such conversation or item.
        """
        found = await self.read(principal, named)

        def search() -> dict[str, Any] | None:
            shown = (_show(found.container, each) for each in found.entries)
            return next((each for each in shown if each is not None and each["id"] == item), None)

        if (shown := await asyncio.to_thread(search)) is None:
            raise _no_item(item)
        return shown

    def begin(self, principal: str, named: str, response: str) -> list[Entry]:
        """Reserve a conversation for a response. Return its entries.

        Raises:
            NotFound: The principal has no such conversation.
            Conflict: Another response continues it now.
            BadRequest: It is full.
        """
        found = self.find(principal, named)
        if found.pending is not None:
            raise Conflict(
                "Another response continues this conversation now. Wait until it has ended.", param="conversation",
                openai_code="conversation_locked",
            )  # fmt: skip
        self._check_room(principal, found, 1, "conversation")
        found.pending = response
        self._store.put_conversation(principal, found)
        return found.entries

    def end(self, principal: str, response: KeptResponse, *, keep: bool) -> None:
        """Append a response that has ended, or only release the conversation.

        Args:
            principal: Name of the principal.
            response: The response.
            keep: Whether it is appended. One that failed at its beginning is not: its request will come again.
        """
        assert response.request.conversation is not None
        try:
            found = self._store.conversation(principal, response.request.conversation)
        except NotFound:
            return  # deleted meanwhile
        if found.pending != response.id:
            return
        if keep:
            found.append(response)
        found.pending = None
        self._store.put_conversation(principal, found)

    def update(self, principal: str, named: str, metadata: dict[str, str]) -> KeptConversation:
        """Replace the metadata.

        Raises:
            NotFound: The principal has no such conversation.
        """
        found = self.find(principal, named)
        found.metadata = metadata
        self._store.put_conversation(principal, found)
        return found

    def add(self, principal: str, named: str, entries: list[Entry]) -> KeptConversation:
        """Add entries of the client.

        Raises:
            NotFound: The principal has no such conversation.
            BadRequest: There are too many.
            QuotaExceeded: See ``AnswerStore.check_room``.
        """
        self._store.check_room(principal)
        found = self.find(principal, named)
        self._check_room(principal, found, len(entries), "items")
        found.entries += entries
        self._store.put_conversation(principal, found)
        return found

    def _check_room(self, principal: str, found: KeptConversation, more: int, param: str) -> None:
        if len(found.entries) + more > MAX_ENTRIES or self._store.size(principal, found.id) > MAX_BYTES:
            most = f"{MAX_ENTRIES} items and {MAX_BYTES // 2**20} MiB"
            raise BadRequest(f"A conversation has at most {most}. Start a new one.", param=param)

    def remove_item(self, principal: str, named: str, item: str) -> KeptConversation:
        """Erase an item.

        Raises:
            NotFound: There is no such conversation or item.
        """
        found = self.find(principal, named)
        kept = [each for each in found.entries if _id_of(each) != item]
        if len(kept) == len(found.entries):
            raise _no_item(item)
        found.entries = kept
        self._store.put_conversation(principal, found)
        return found


def _id_of(entry: Entry) -> str:
    return getattr(entry, "id", "")


def _no_item(item: str) -> NotFound:
    return NotFound(f"The conversation has no item {item[:100]!r}.")


def items_json(conversation: KeptConversation, entries: list[Entry]) -> list[dict[str, Any]]:
    """Return entries as clients see them, without outputs of cells."""
    return [item_json(each, None, conversation.container) for each in entries if _is_item(each)]


def _is_item(entry: Entry) -> bool:
    """Return whether clients see an entry. They see no notes of the server and no reasoning."""
    return (
        bool(_id_of(entry)) and not isinstance(entry, ReasoningItem) and (is_shown(entry) or not hasattr(entry, "turn"))
    )


def _show(container: str, entry: msgspec.Raw) -> dict[str, Any] | None:
    found: Entry = msgspec.json.decode(entry, type=Entry)
    return item_json(found, None, container) if _is_item(found) else None


def conversation_json(conversation: KeptConversation | ConversationOutline) -> dict[str, Any]:
    """Return a conversation."""
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created,
        "metadata": conversation.metadata,
    }


def copied(response: KeptResponse) -> KeptResponse:
    """Return a copy that shares no entry with a running answer."""
    return msgspec.json.decode(msgspec.json.encode(response), type=KeptResponse)
