"""Pictures on a terminal: the terminal's own protocol where it has one, else half blocks, else a description."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from kernelsvc.cli.terminal_filter import size
from kernelsvc.client import Image

Way = Literal["kitty", "iterm", "blocks", "blocks256", "words"]

#: A picture from a kernel is hostile too: one that unfolds to more pixels than this is only described.
MAX_PIXELS = 40_000_000
_KITTY_PIECE = 4096


def way(env: Mapping[str, str], *, tty: bool, colour: bool) -> Way:
    """How this terminal can show a picture."""
    if not tty or not colour:
        return "words"
    if "KITTY_WINDOW_ID" in env or env.get("TERM_PROGRAM") == "ghostty":
        return "kitty"
    if env.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm"):
        return "iterm"
    return "blocks" if env.get("COLORTERM") in ("truecolor", "24bit") else "blocks256"


def described(image: Image) -> str:
    """A picture in words."""
    pixels = _pixels(image)
    dimensions = f", {pixels[0]} by {pixels[1]}" if pixels else ""
    return f"[{image.mime}{dimensions}, {size(len(image.data))}]"


def _pixels(image: Image) -> tuple[int, int] | None:
    """Width and height, read from the file's head alone."""
    # Pillow comes with matplotlib, which comes with us; imported late, as few commands need it.
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(image.data), formats=("PNG", "JPEG", "GIF", "WEBP")) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return None


def lines(image: Image, how: Way, columns: int) -> Iterator[str]:
    """The picture as lines to print, the last without a line's end."""
    pixels = _pixels(image)
    if how == "words" or pixels is None or pixels[0] * pixels[1] > MAX_PIXELS:
        yield described(image)
    elif how == "kitty" and image.mime == "image/png":
        yield _kitty(image.data)
    elif how == "iterm":
        yield f"\x1b]1337;File=inline=1;size={len(image.data)}:{base64.b64encode(image.data).decode()}\a"
    else:
        yield from _blocks(image.data, columns, _cell if how != "blocks256" else _cell256)


def _kitty(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    pieces = [text[i : i + _KITTY_PIECE] for i in range(0, len(text), _KITTY_PIECE)]
    last = len(pieces) - 1
    return "".join(
        f"\x1b_G{'a=T,f=100,' if n == 0 else ''}m={int(n < last)};{piece}\x1b\\" for n, piece in enumerate(pieces)
    )


def _blocks(data: bytes, columns: int, cell: Callable[[bytes, bytes], str]) -> Iterator[str]:
    """Two pixels a character: the upper one is the letter's colour, the lower one its ground."""
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data)) as opened:
        flat = Pillow.new("RGB", opened.size, "white")
        rgba = opened.convert("RGBA")
        flat.paste(rgba, mask=rgba.getchannel("A"))
    width = max(1, min(columns, flat.width))
    height = max(2, round(flat.height * width / flat.width) // 2 * 2)
    small = flat.resize((width, height), Pillow.Resampling.LANCZOS)
    pixels = small.tobytes()
    for row in range(0, height, 2):
        starts = [(row * width + x) * 3 for x in range(width)]
        pairs = [(pixels[at : at + 3], pixels[at + width * 3 : at + width * 3 + 3]) for at in starts]
        yield "".join(cell(upper, lower) for upper, lower in pairs) + "\x1b[0m"


def _cell(upper: bytes, lower: bytes) -> str:
    return f"\x1b[38;2;{upper[0]};{upper[1]};{upper[2]};48;2;{lower[0]};{lower[1]};{lower[2]}m▀"


def _cell256(upper: bytes, lower: bytes) -> str:
    return f"\x1b[38;5;{_nearest(upper)};48;5;{_nearest(lower)}m▀"


def _nearest(pixel: bytes) -> int:
    """The nearest of xterm's 256 colours: a cube of 6 by 6 by 6 (steps 0, 95, 135 … 255) and 24 greys (8, 18 … 238)."""
    if max(pixel) - min(pixel) < 12:
        grey = sum(pixel) // 3
        return 231 if grey > 243 else 16 if grey < 4 else 232 + min(23, max(0, round((grey - 8) / 10)))
    red, green, blue = (0 if value < 48 else 1 if value < 115 else (value - 35) // 40 for value in pixel)
    return 16 + 36 * red + 6 * green + blue
