"""The result of a tool call. Pure."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import msgspec
from msgspec import Struct

from kernelsvc.errors import KernelsvcError
from kernelsvc.model.events import Reason
from kernelsvc.model.objects import CellInfo, CellState, CellView
from kernelsvc.tools.definitions import DEFAULT_TEXT, CellResult, ErrorShown

#: Maximum number of images in one result, and of their bytes. MCP hosts refuse results of many megabytes.
MAX_PICTURES, MAX_PICTURE_BYTES = 4, 4 * 1024 * 1024
#: Most pixels on a side of a picture, and most of a picture that is made smaller.
MAX_SIDE, MAX_PIXELS = 1000, 40_000_000


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


def cell_result(cell: CellInfo, view: CellView, note: str | None = None) -> ToolResult:
    """Return the result for a cell.

    Args:
        cell: state of the cell, for the facts.
        view: text and pictures for the model.
        note: a notice about the session, shown first.
    """
    text, cut = shortened(cell.text, DEFAULT_TEXT, "read_output reads any of it")
    pictures, _ = view_pictures(view)
    result = CellResult(
        session=cell.session,
        cell=cell.id,
        number=view.number,
        state=str(cell.state),
        reason=str(cell.reason) if cell.reason is not None else None,
        execution_count=cell.execution_count,
        text=text,
        error=ErrorShown(ename=cell.error.ename, evalue=cell.error.evalue[:2000]) if cell.error else None,
        variables_kept=cell.variables_kept,
        images=len(pictures),
        truncated=cut,
        next=_advice(cell),
        note=note,
    )
    shown = f"[{note}]\n{view.text}" if note else view.text
    failed = cell.state is CellState.FINISHED and cell.reason is not Reason.OK
    return tool_result(result, shown, *pictures, failed=failed)


def view_pictures(view: CellView) -> tuple[list[ImageContent], int]:
    """Return the pictures of a view, within the limit of bytes, and how many of them are missing."""
    kept: list[ImageContent] = []
    room = MAX_PICTURE_BYTES
    for each in view.pictures[:MAX_PICTURES]:
        try:
            data = base64.b64decode(each.data)
        except (binascii.Error, ValueError):
            continue
        picture = smaller(each.mime, data)
        if len(picture.data) <= room:
            kept.append(picture)
            room -= len(picture.data)
    return kept, len(view.pictures) - len(kept)


def smaller(mime: str, data: bytes) -> ImageContent:
    """Return a picture with at most ``MAX_SIDE`` pixels on a side. One that can't be read is returned as it is."""
    if mime not in ("image/png", "image/jpeg"):
        return ImageContent(mime, data)
    # Imported late: most cells have no pictures.
    from PIL import Image

    try:
        # Only the two decoders that are needed: the kernel's data are not trusted.
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            width, height = picture.size
            if max(width, height) <= MAX_SIDE or width * height > MAX_PIXELS:
                return ImageContent(mime, data)
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
            out = io.BytesIO()
            picture.save(out, "PNG" if mime == "image/png" else "JPEG")
            return ImageContent(mime, out.getvalue())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ImageContent(mime, data)


_KEPT = "The variables from before this cell are kept."
_PARTLY = "The variables are those of an earlier state. Run again what you need of the cells that the message names."
_ADVICE = {
    Reason.TIMEOUT: "The cell exceeded its time limit. Split the work, or give a larger seconds. ",
    Reason.MEMORY: "The cell reached the memory limit. Use less at a time: chunks, smaller dtypes, del. ",
    Reason.KERNEL_DIED: "The Python process ended. ",
    Reason.INTERRUPTED: "The cell was interrupted. ",
    Reason.CANCELLED: "It did not run: one before it failed, or a person refused it. Repeat it only if still wanted. ",
    Reason.SESSION_CLOSED: "The session has ended. Use run_code in another session. ",
}


def _advice(cell: CellInfo) -> str | None:
    if cell.state is not CellState.FINISHED:
        if cell.state is CellState.QUEUED:
            return "The cell waits for another cell or for a person's decision: call wait to get its result."
        return "The cell still runs: call wait to get its result, or interrupt to stop it."
    if cell.reason not in _ADVICE:
        return None
    lost = "The variables are lost. Run again the cells that define the ones you need."
    partly = "without the effects" in (cell.message or "")
    kept = {True: _PARTLY if partly else _KEPT, False: lost, None: ""}[cell.variables_kept]
    return (_ADVICE[cell.reason] + kept).strip()
