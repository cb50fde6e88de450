"""The result of a tool call. Pure."""

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

#: Maximum number of images in one result, and of their bytes. MCP hosts refuse results of many megabytes.
MAX_PICTURES, MAX_PICTURE_BYTES = 8, 4 * 1024 * 1024
_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")


class TextContent(Struct, frozen=True):
    """Text for the model."""

    text: str


class ImageContent(Struct, frozen=True):
    """An image for the model."""

    mime: str
    data: bytes


class ResourceLink(Struct, frozen=True, kw_only=True):
    """A link to an MCP resource."""

    uri: str
    name: str
    mime: str
    size: int


class ToolResult(Struct, frozen=True, kw_only=True):
    """The result of a call.

    Attributes:
        parts: content for the model, in order.
        facts: the same for programs, as a JSON object. None for an error.
        failed: whether the call, or the cell, failed.
    """

    parts: list[TextContent | ImageContent | ResourceLink]
    facts: dict[str, Any] | None = None
    failed: bool = False

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextContent))

    @property
    def pictures(self) -> list[ImageContent]:
        """The images of all parts."""
        return [part for part in self.parts if isinstance(part, ImageContent)]


def tool_result(result: Struct, text: str, *more: ImageContent | ResourceLink, failed: bool = False) -> ToolResult:
    """Return a result with a text and its facts."""
    return ToolResult(parts=[TextContent(text), *more], facts=msgspec.to_builtins(result), failed=failed)


def error_result(error: KernelsvcError) -> ToolResult:
    """Return the result for an error. Its message names the next step."""
    reasons = "".join(f"\n- {reason}" for reason in error.details.get("reasons", []))
    return ToolResult(parts=[TextContent(f"{error.code}: {error.message}{reasons}")], failed=True)


def shortened(text: str, limit: int, advice: str) -> tuple[str, bool]:
    """Shorten a text to its head and tail. Return it, and whether a part is missing."""
    if len(text) <= limit:
        return text, False
    # Most of the beginning, which shows the kind of output, and the end, which has an error or the last result.
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n[… {len(text) - limit} characters left out; {advice} …]\n{text[-tail:]}", True


def cell_result(cell: CellInfo, limit: int, note: str | None = None) -> ToolResult:
    """Return the result for a cell.

    Args:
        cell: state of the cell.
        limit: maximum number of characters of its text.
        note: a notice about the session, shown first.
    """
    advice = f"read_output with cell={cell.id!r} returns all of it"
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
    lines = [note, text.rstrip("\n"), _omitted_images(cell, dropped), _status_line(cell), following]
    shown = "\n".join(part for part in lines if part)
    return tool_result(result, shown, *pictures, failed=done and cell.reason is not Reason.OK)


def _status_line(cell: CellInfo) -> str:
    ended = f"ended: {cell.reason}" if cell.reason is not None else str(cell.state)
    cause = f" ({cell.message})" if cell.message and cell.message not in cell.text else ""
    return f"[cell {cell.id} {ended}{cause}, session {cell.session}]"


def _omitted_images(cell: CellInfo, dropped: int) -> str | None:
    if not dropped:
        return None
    return f"[{dropped} more pictures are in the notebook: call export_notebook, or show fewer or smaller ones]"


_KEPT = "The variables from before this cell are kept."
_ADVICE = {
    Reason.TIMEOUT: "The cell exceeded its time limit. Split the work, or give a larger timeout_seconds. ",
    Reason.MEMORY: "The cell reached the memory limit. Use less at a time: chunks, smaller dtypes, del. ",
    Reason.KERNEL_DIED: "The Python process ended. ",
    Reason.INTERRUPTED: "The cell was interrupted. ",
    Reason.CANCELLED: "The cell did not run, because one before it failed. Run it again if you still need it. ",
    Reason.SESSION_CLOSED: "The session has ended. Use run_code in another session. ",
}


def _advice(cell: CellInfo) -> str | None:
    if cell.state is not CellState.FINISHED:
        verb = "waits for another cell" if cell.state is CellState.QUEUED else "still runs"
        return f"The cell {verb}: call wait_for_cell with cell={cell.id!r} to get its result, or interrupt to stop it."
    if cell.reason not in _ADVICE:
        return None
    lost = "The variables are lost. Run again the cells that define the ones you need."
    kept = {True: _KEPT, False: lost, None: ""}[cell.variables_kept]
    return (_ADVICE[cell.reason] + kept).strip()


def pictures_of(cell: CellInfo) -> tuple[list[ImageContent], int]:
    """Return the images of a cell, one for each output, within the limits. Also return how many exceed the limits."""
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
