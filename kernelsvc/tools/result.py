"""What a tool call gives back: decisions on values."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
from msgspec import Struct

from kernelsvc.errors import KernelsvcError
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellInfo, CellState
from kernelsvc.tools.definitions import CellResult, ErrorShown

#: Pictures in one result, and their bytes together; hosts refuse results of many megabytes.
MAX_PICTURES, MAX_PICTURE_BYTES = 8, 4 * 1024 * 1024
_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")


class TextContent(Struct, frozen=True):
    """Words for the model."""

    text: str


class ImageContent(Struct, frozen=True):
    """A picture for the model."""

    mime: str
    data: bytes


class ResourceLink(Struct, frozen=True, kw_only=True):
    """Something that can be read elsewhere."""

    uri: str
    name: str
    mime: str
    size: int


class ToolResult(Struct, frozen=True, kw_only=True):
    """The result of a call.

    Attributes:
        parts: for the model, in order.
        facts: the same for programs, a JSON object; None for a refusal.
        failed: whether the model should take it for a failure.
    """

    parts: list[TextContent | ImageContent | ResourceLink]
    facts: dict[str, Any] | None = None
    failed: bool = False

    @property
    def text(self) -> str:
        """All words."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextContent))

    @property
    def pictures(self) -> list[ImageContent]:
        """All pictures."""
        return [part for part in self.parts if isinstance(part, ImageContent)]


def tool_result(result: Struct, text: str, *more: ImageContent | ResourceLink, failed: bool = False) -> ToolResult:
    """An outcome of words and facts."""
    return ToolResult(parts=[TextContent(text), *more], facts=msgspec.to_builtins(result), failed=failed)


def error_result(error: KernelsvcError) -> ToolResult:
    """An error as the model reads it; its message says the next step."""
    reasons = "".join(f"\n- {reason}" for reason in error.details.get("reasons", []))
    return ToolResult(parts=[TextContent(f"{error.code}: {error.message}{reasons}")], failed=True)


def shortened(text: str, limit: int, advice: str) -> tuple[str, bool]:
    """The head and the tail of a long text, and whether something is missing between them."""
    if len(text) <= limit:
        return text, False
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n[… {len(text) - limit} characters left out; {advice} …]\n{text[-tail:]}", True


def cell_result(cell: CellInfo, limit: int, note: str | None = None) -> ToolResult:
    """A cell as a model wants it.

    Args:
        cell: as it is now.
        limit: characters of its text.
        note: something to say first.
    """
    advice = f"read_output with cell={cell.id!r} has all of it"
    text, cut = shortened(cell.text, limit, advice)
    pictures, dropped = pictures_of(cell)
    done = cell.state is CellState.FINISHED
    following = _advice(cell)
    result = CellResult(
        session=cell.session,
        cell=cell.id,
        state=str(cell.state),
        reason=str(cell.reason) if cell.reason is not None else None,
        execution_count=cell.execution_count,
        text=text,
        error=ErrorShown(ename=cell.error.ename, evalue=cell.error.evalue[:2000]) if cell.error else None,
        variables_kept=cell.variables_kept,
        images=len(pictures),
        truncated=cut,
        next=following,
        note=note,
    )
    said = [note, text.rstrip("\n"), _omitted_images(cell, dropped), _status_line(cell), following]
    shown = "\n".join(part for part in said if part)
    return tool_result(result, shown, *pictures, failed=done and cell.reason is not Reason.OK)


def _status_line(cell: CellInfo) -> str:
    ended = f"ended: {cell.reason}" if cell.reason is not None else str(cell.state)
    cause = f" ({cell.message})" if cell.message and cell.message not in cell.text else ""
    return f"[cell {cell.id} {ended}{cause}, session {cell.session}]"


def _omitted_images(cell: CellInfo, dropped: int) -> str | None:
    if not dropped:
        return None
    return f"[{dropped} more pictures are in the notebook: export_notebook, or show fewer or smaller ones]"


_KEPT = "Variables from before this cell are there."
_ADVICE = {
    Reason.TIMEOUT: "The cell took longer than it may; split the work, or give a larger timeout_seconds. ",
    Reason.MEMORY: "The memory limit was reached; use less at once: chunks, smaller dtypes, del. ",
    Reason.KERNEL_DIED: "The Python process ended. ",
    Reason.INTERRUPTED: "The cell was interrupted. ",
    Reason.CANCELLED: "The cell did not run, since one before it failed; run it again if it is still wanted. ",
    Reason.SESSION_CLOSED: "The session has ended; run_code in another session. ",
}


def _advice(cell: CellInfo) -> str | None:
    if cell.state is not CellState.FINISHED:
        verb = "waits behind another cell" if cell.state is CellState.QUEUED else "still runs"
        return f"The cell {verb}: call wait_for_cell with cell={cell.id!r} to pick it up, or interrupt to stop it."
    if cell.reason not in _ADVICE:
        return None
    lost = "The variables are gone; run again the cells that made what you need."
    kept = {True: _KEPT, False: lost, None: ""}[cell.variables_kept]
    return (_ADVICE[cell.reason] + kept).strip()


def pictures_of(cell: CellInfo) -> tuple[list[ImageContent], int]:
    """One picture for each output that has any, within bounds; and how many were left out."""
    bundles = (output.get("data") for output in cell.outputs)
    found = [picture for bundle in bundles if isinstance(bundle, dict) and (picture := _picture(bundle))]
    kept: list[ImageContent] = []
    room = MAX_PICTURE_BYTES
    for picture in found:
        if len(kept) < MAX_PICTURES and len(picture.data) <= room:
            kept.append(picture)
            room -= len(picture.data)
    return kept, len(found) - len(kept)


def _picture(bundle: dict[str, Any]) -> ImageContent | None:
    for mime in _PICTURES:
        value = bundle.get(mime)
        if isinstance(value, list):
            value = "".join(map(str, value))
        if isinstance(value, str):
            try:
                return ImageContent(mime, base64.b64decode(value))
            except (binascii.Error, ValueError):
                continue
    return None
