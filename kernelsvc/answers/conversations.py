"""Conversations: entries that responses append to, so that a client names a conversation instead of a response."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from kernelsvc.answers.kept import AnswerStore, KeptConversation, KeptResponse
from kernelsvc.errors import BadRequest, Conflict, NotFound
from kernelsvc.model.answers.values import CodeItem, Entry, ReasoningItem, is_shown
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


def find_item(conversation: KeptConversation, item: str) -> Entry:
    """Return an item by its id.

    Raises:
        NotFound: There is none.
    """
    found = next((each for each in conversation.entries if item and _id_of(each) == item), None)
    if found is None:
        raise _no_item(item)
    return found


def items_json(
    conversation: KeptConversation,
    entries: list[Entry],
    outputs: Callable[[CodeItem], list[dict[str, Any]] | None] = lambda item: None,
) -> list[dict[str, Any]]:
    """Return entries as clients see them. Notes of the server and reasoning do not appear."""
    return [
        item_json(each, outputs(each) if isinstance(each, CodeItem) else None, conversation.container)
        for each in entries
        if _id_of(each) and not isinstance(each, ReasoningItem) and (is_shown(each) or not hasattr(each, "turn"))
    ]


def conversation_json(conversation: KeptConversation) -> dict[str, Any]:
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
