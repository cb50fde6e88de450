"""Responses, conversations and uploads on disk, a directory for each principal. They are never in a session's log.

A log is signed and can't lose a line. The texts of users and models must be erasable, so they are files of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest, NotFound, QuotaExceeded
from kernelsvc.linux import atomic_file
from kernelsvc.linux.clock import SteadyClock
from kernelsvc.model.answers.machine import AnswerEnded
from kernelsvc.model.answers.values import Entry, TokenUsage
from kernelsvc.model.objects import Principal
from kernelsvc.protocol.openai.requests import AnswerRequest

_ID = re.compile(r"(resp|file|conv)[_-][0-9a-f]{32}\Z")
_PREFIXES = {"response": "resp_", "file": "file-", "conversation": "conv_"}
#: The number of a response's items, behind the kind. It begins with 16 digits of the response's own.
_ITEM = re.compile(r"[a-z]{1,8}_([0-9a-f]{16})[0-9a-f]{16}\Z")
#: The numbers of turns that a response may have. In a conversation those of the next one are behind them.
TURNS = 1000
#: Seconds between two searches for files that are too old, and of a day.
SWEEP_SECONDS, DAY = 3600.0, 86400.0
#: Most files that one request names. The description of each is read in the event loop.
MAX_NAMED = 1000


class KeptResponse(msgspec.Struct, kw_only=True):
    """A response on disk.

    Attributes:
        id: Its id.
        created: Seconds of Unix time.
        request: The request, with the new input.
        transcript: The items of the answer and the server's notes.
        container: Id of its container, or "".
        usage: Tokens.
        ended: How it ended. None while it runs, and after a crash of the server.
        completed: Seconds of Unix time.
        elided: Number of results omitted from the model's context.
        events: Events of a background response, each as JSON.
        emitted: Number of events of a background response that runs.
        resumed: How often a server has continued it after a kill.
    """

    id: str
    created: int
    request: AnswerRequest
    transcript: list[Entry] = []
    container: str = ""
    usage: TokenUsage = TokenUsage()
    ended: AnswerEnded | None = None
    completed: int | None = None
    elided: int = 0
    events: list[dict[str, Any]] = []
    emitted: int = 0
    resumed: int = 0


class KeptConversation(msgspec.Struct, kw_only=True):
    """A conversation on disk.

    Attributes:
        id: Its id.
        created: Seconds of Unix time.
        metadata: Of the client.
        entries: Messages and items so far.
        container: Id of the newest container, or "".
        answers: Number of responses that were appended.
        pending: Id of the response that continues it now. After a crash, that of one which was not appended.
    """

    id: str
    created: int
    metadata: dict[str, str] = {}
    entries: list[Entry] = []
    container: str = ""
    answers: int = 0
    pending: str | None = None

    def append(self, response: KeptResponse) -> None:
        """Append a response's input and items. Its turns get numbers that no earlier one has."""
        self.answers += 1
        renumber(response.transcript, self.answers)
        self.entries += [*response.request.input, *response.transcript]
        self.container = response.container or self.container
        self.pending = None


class ConversationOutline(msgspec.Struct, kw_only=True):
    """A conversation on disk, with its entries as JSON. The fields are those of ``KeptConversation``.

    One call that decodes all entries would keep other threads from running for as long as it takes.
    """

    id: str
    created: int
    metadata: dict[str, str] = {}
    entries: list[msgspec.Raw] = []
    container: str = ""
    pending: str | None = None


class _Input(msgspec.Struct):
    input: list[msgspec.Raw]


class _RequestOf(msgspec.Struct):
    request: _Input


def renumber(entries: list[Entry], answer: int) -> None:
    """Make the numbers of turns unique in a whole conversation: two answers are never one message.

    Args:
        entries: Items of one answer. They are changed.
        answer: Number of the answer in the conversation.
    """
    for each in entries:
        if hasattr(each, "turn"):
            each.turn = each.turn % TURNS + TURNS * answer


class KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file. ``created`` is in seconds of Unix time, ``size`` in bytes."""

    id: str
    created: int
    filename: str
    purpose: str
    size: int


class AnswerStore:
    """The directory of all responses and files.

    Args:
        directory: Made when it is first needed, mode 0700.
        days: Age at which a response or file is removed.
    """

    def __init__(self, directory: Path, days: float) -> None:
        self._directory, self._days = directory, days
        self._clock = SteadyClock()
        self._swept = 0.0
        #: Bytes of a principal's directory. They are counted by its first request of each hour.
        self._bytes: dict[Path, int] = {}

    def check_room(self, principal: str) -> None:
        """Check whether a principal may keep more. Each one leaves as much of the disk free as it uses.

        Raises:
            QuotaExceeded: Its objects have more bytes than the disk has free.
        """
        directory = self._of(principal)
        try:
            if directory not in self._bytes:
                self._bytes[directory] = sum(each.stat().st_size for each in os.scandir(directory))
            disk = os.statvfs(directory)
        except OSError:
            return  # it has none yet, or another request removes one now
        if self._bytes[directory] > disk.f_bavail * disk.f_frsize:
            raise QuotaExceeded(
                "Your stored responses, conversations and files have more bytes than the server's disk has free. "
                "Delete some, or set 'store' to false."
            )

    def put_response(self, principal: str, response: KeptResponse) -> None:
        """Write a response.

        Raises:
            OSError: The disk is full.
        """
        self._write(self._path(principal, response.id, make=True), msgspec.json.encode(response))
        self._sweep()

    def mark(self, who: Principal, response: str) -> None:
        """Note that a background response runs, so that the next server finds it after a kill of this one.

        Raises:
            OSError: The disk is full.
        """
        # The digest of the token is not stored: nothing here may open what is bound to the token.
        owner = msgspec.structs.replace(who, token_sha256="")
        path = self._directory / "running" / f"{response}.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_file.replace_bytes(path, msgspec.json.encode(owner))

    def unmark(self, response: str) -> None:
        """Note that a background response has ended."""
        with contextlib.suppress(OSError):
            (self._directory / "running" / f"{response}.json").unlink()

    def marked(self) -> dict[str, Principal]:
        """Return the principals of the background responses that ran when the server ended, by their ids."""
        found = {}
        for path in sorted((self._directory / "running").glob("resp_*.json")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found[path.stem] = msgspec.json.decode(path.read_bytes(), type=Principal)
        return found

    def response(self, principal: str, response: str) -> KeptResponse:
        """Return a response.

        Raises:
            NotFound: The principal has no such response.
        """
        return msgspec.json.decode(self._read(principal, response, "response"), type=KeptResponse)

    def input_of(self, principal: str, response: str) -> list[msgspec.Raw]:
        """Return the input of a response, each entry as JSON. For any thread.

        Raises:
            NotFound: The principal has no such response.
        """
        return msgspec.json.decode(self._read(principal, response, "response"), type=_RequestOf).request.input

    def item(self, principal: str, item: str) -> tuple[KeptResponse, Entry]:
        """Return an item of a response's output, with its response.

        Raises:
            NotFound: The principal has no such item.
        """
        found = _ITEM.fullmatch(item)
        for path in self._of(principal).glob(f"resp_{found.group(1)}*.json") if found else ():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                response = msgspec.json.decode(path.read_bytes(), type=KeptResponse)
                for each in response.transcript:
                    if getattr(each, "id", "") == item:
                        return response, each
        raise NotFound(f"Item with id '{item[:100]}' not found. Items of responses that are not stored have no id.")

    def size(self, principal: str, named: str) -> int:
        """Return the bytes of an object on disk. 0 if the principal has none with this id."""
        try:
            return _size(self._path(principal, named))
        except NotFound:
            return 0

    def put_conversation(self, principal: str, conversation: KeptConversation) -> None:
        """Write a conversation.

        Raises:
            OSError: The disk is full.
        """
        self._write(self._path(principal, conversation.id, make=True), msgspec.json.encode(conversation))
        self._sweep()

    def conversation(self, principal: str, conversation: str) -> KeptConversation:
        """Return a conversation.

        Raises:
            NotFound: The principal has no such conversation.
        """
        return msgspec.json.decode(self._read(principal, conversation, "conversation"), type=KeptConversation)

    def conversation_outline(self, principal: str, conversation: str) -> ConversationOutline:
        """Return a conversation with its entries as JSON. For any thread.

        Raises:
            NotFound: The principal has no such conversation.
        """
        return msgspec.json.decode(self._read(principal, conversation, "conversation"), type=ConversationOutline)

    def put_file(self, principal: str, file: KeptFile, data: bytes) -> None:
        """Write a file.

        Raises:
            OSError: The disk is full.
        """
        path = self._path(principal, file.id, make=True)
        self._write(path.with_suffix(".data"), data)
        self._write(path, msgspec.json.encode(file))
        self._sweep()

    def file(self, principal: str, file: str) -> KeptFile:
        """Return the description of a file.

        Raises:
            NotFound: The principal has no such file.
        """
        return msgspec.json.decode(self._read(principal, file, "file"), type=KeptFile)

    def named(self, principal: str, files: list[str]) -> list[KeptFile]:
        """Return the descriptions of files that a request names, each once.

        Raises:
            BadRequest: They are too many.
            NotFound: The principal has no such file.
        """
        once = dict.fromkeys(files)
        if len(once) > MAX_NAMED:
            raise BadRequest(f"A request names at most {MAX_NAMED} files.", param="file_ids")
        return [self.file(principal, each) for each in once]

    def files(self, principal: str) -> list[KeptFile]:
        """Return the descriptions of all files, the newest first."""
        found = []
        for path in self._of(principal).glob("file-*.json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=KeptFile))
        return sorted(found, key=lambda each: (-each.created, each.id))

    def content(self, principal: str, file: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            NotFound: The principal has no such file.
        """
        self.file(principal, file)
        try:
            return self._path(principal, file).with_suffix(".data").read_bytes()
        except OSError:
            raise NotFound(f"There is no file {file!r}.") from None

    def remove(self, principal: str, named: str) -> None:
        """Erase a response, a conversation or a file.

        Raises:
            NotFound: The principal has none with this id.
        """
        path = self._path(principal, named)
        size = _size(path) + _size(path.with_suffix(".data"))
        path.with_suffix(".data").unlink(missing_ok=True)
        try:
            path.unlink()
        except OSError:
            raise NotFound(f"There is no object {named[:100]!r}.") from None
        self._count(path, -size)

    def _write(self, path: Path, data: bytes) -> None:
        before = _size(path)
        atomic_file.replace_bytes(path, data)
        self._count(path, len(data) - before)

    def _count(self, path: Path, more: int) -> None:
        if path.parent in self._bytes:
            self._bytes[path.parent] += more

    def _read(self, principal: str, named: str, kind: str) -> bytes:
        path = self._path(principal, named)
        if not named.startswith(_PREFIXES[kind]):
            raise NotFound(f"There is no {kind} {named[:100]!r}.")
        try:
            return path.read_bytes()
        except OSError:
            raise NotFound(f"There is no {kind} {named[:100]!r}. It may have been removed.") from None

    def _of(self, principal: str) -> Path:
        # A principal's name is not the name of a file: it may have any characters.
        return self._directory / hashlib.sha256(principal.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def _path(self, principal: str, named: str, *, make: bool = False) -> Path:
        if _ID.fullmatch(named) is None:
            raise NotFound(f"There is no object {named[:100]!r}.")
        directory = self._of(principal)
        if make:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / f"{named}.json"

    def _sweep(self) -> None:
        """Remove what is too old. A look at each file costs microseconds, so that this is done once an hour."""
        now = time.monotonic()
        if self._swept and now < self._swept + SWEEP_SECONDS:
            return
        self._swept = now
        self._bytes.clear()
        oldest = self._clock() - self._days * DAY
        for path in self._directory.glob("*/*"):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < oldest:
                    path.unlink()


def _size(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
