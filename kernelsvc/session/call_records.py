"""The calls of a session as its log has them: pages of calls, and calls by id.

A log can have gigabytes of calls. So a reader decodes only the entries that it returns, works in any thread, and holds
a page of limited size.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from kernelsvc.errors import NotFound
from kernelsvc.model import events as ev
from kernelsvc.model.objects import CallState, ToolCallInfo
from kernelsvc.model.tool_calls.ledger import OpenCall, runs_of
from kernelsvc.model.tool_calls.offers import CallStatus
from kernelsvc.session.ports import Log

#: Entries between two about calls that are read, too, instead of a search in the log's file.
NEAR = 8
#: Bytes of arguments after which a page of calls ends, and after which the calls of a decision have none.
PAGE_BYTES = 4 * 1024 * 1024
_BEGINNINGS = (b'{"type":"tool_called"', b'{"type":"tool_decided"', b'{"type":"tool_returned"')


class _Called(msgspec.Struct, tag_field="type", tag="tool_called"):
    call: str = ""
    cell: Any = None
    bytes: int = 0


class _Decided(msgspec.Struct, tag_field="type", tag="tool_decided"):
    call: str = ""


class _Returned(msgspec.Struct, tag_field="type", tag="tool_returned"):
    call: str = ""
    seq: int = 0
    status: CallStatus = "ok"


#: Decodes an entry about a call without its arguments and its result, which msgspec skips.
_outline = msgspec.json.Decoder(_Called | _Decided | _Returned).decode


def call_lines(log: Log, entries: Iterable[int], near: int = NEAR) -> Iterator[bytes]:
    """Yield the entries about calls at these positions, and those between positions that are near each other."""
    for first, last in runs_of(entries, near):
        for line in log.lines(first, last):
            if line.startswith(_BEGINNINGS):
                yield line


def calls_without_values(log: Log, entries: Iterable[int]) -> Iterator[ev.Event]:
    """Yield the entries at these positions: calls with their arguments, and their ends without results."""
    for line in call_lines(log, entries, near=1):
        if line.startswith(_BEGINNINGS[0]):
            yield ev.decode(line)
        elif isinstance(end := _outline(line), _Returned):
            yield ev.ToolReturned(call=end.call, seq=end.seq, status=end.status)


class CallReader:
    """The calls of a session at one moment. May be used in another thread.

    Args:
        session: the session's id.
        log: has the entries.
        entries: positions of the entries about calls.
        open_calls: calls without an end, by id.
    """

    def __init__(self, session: str, log: Log, entries: array[int], open_calls: Mapping[str, OpenCall]) -> None:
        self._session = session
        self._log = log
        self._entries = entries[:]
        self._open = {call.id: (call.seq, call.pending, call.decided_by) for call in open_calls.values()}

    def page(
        self, *, cell: str | None, state: CallState | None, offset: int, limit: int
    ) -> tuple[list[ToolCallInfo], int]:
        """Return a page of calls without results, in the order in which code made them, and how many calls there are.

        The page ends before ``limit`` if its arguments are large.
        """
        entries: Iterable[int] = self._entries
        if state in ("pending", "running"):  # few of many
            entries = [seq for seq, _, _ in self._open.values()]
        found: dict[str, ToolCallInfo] = {}
        total = size = 0
        for line in call_lines(self._log, entries):
            event = _outline(line)
            if isinstance(event, _Called):
                if cell not in (None, event.cell) or state not in (None, self._state(event.call)):
                    continue
                total += 1
                if total > offset and len(found) < limit and size <= PAGE_BYTES:
                    size += event.bytes
                    found[event.call] = self._called(ev.decode(line))
            elif event.call in found:
                found[event.call] = _with_end(found[event.call], ev.decode(line), with_value=False)
        return [*found.values()], total

    def find(self, calls: Sequence[str], *, with_values: bool = True) -> list[ToolCallInfo]:
        """Return calls by their ids, in the order of the ids. Without values, arguments of some MiB become their size.

        Raises:
            NotFound: there is no such call.
        """
        wanted = set(calls)
        needle = msgspec.json.encode(calls[0]) if len(wanted) == 1 else b""
        found: dict[str, ToolCallInfo] = {}
        size = 0
        for line in call_lines(self._log, self._entries):
            if needle not in line or (event := _outline(line)).call not in wanted:
                continue
            if isinstance(event, _Called):
                size += event.bytes
                info = self._called(ev.decode(line))
                if not with_values and size > PAGE_BYTES:
                    info = msgspec.structs.replace(info, arguments={"$bytes": event.bytes})
                found[event.call] = info
            elif event.call in found:
                found[event.call] = _with_end(found[event.call], ev.decode(line), with_value=with_values)
        for call in calls:
            if call not in found:
                raise NotFound(f"There is no call {call[:200]!r} in this session. List its calls.")
        return [found[call] for call in calls]

    def _state(self, call: str) -> CallState:
        known = self._open.get(call)
        return "ended" if known is None else "pending" if known[1] else "running"

    def _called(self, event: ev.Event) -> ToolCallInfo:
        assert isinstance(event, ev.ToolCalled)
        state = self._state(event.call)
        return ToolCallInfo(
            call=event.call,
            tool=event.tool,
            arguments=event.arguments,
            session=self._session,
            cell=event.cell if isinstance(event.cell, str) else None,
            # An end that was logged after this reader was made follows.
            state="running" if state == "ended" else state,
            provider=event.provider,
            redacted=event.redacted,
            approval=event.approval,
            deadline_seconds=event.deadline_seconds,
            parent_call=event.parent_call,
            called_at=event.at,
            decided_by=self._open[event.call][2] if event.call in self._open else None,
        )


def _with_end(info: ToolCallInfo, event: ev.Event, *, with_value: bool) -> ToolCallInfo:
    match event:
        case ev.ToolDecided():
            return msgspec.structs.replace(info, decided_by=event.by, reason=event.reason)
        case ev.ToolReturned():
            return msgspec.structs.replace(
                info,
                state="ended",
                status=event.status,
                ms=event.ms,
                waited_ms=event.waited_ms,
                value=event.value if with_value else None,
                error=event.error,
                bytes=event.bytes,
                form=event.form,
                ended_at=event.at,
                delivered=event.delivered,
            )
        case _:
            return info
