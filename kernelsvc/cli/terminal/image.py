"""Images on a terminal: the kitty or the iTerm2 graphics protocol, else a description in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Literal

from kernelsvc.cli.terminal.filter import size
from kernelsvc.client import Image

ImageProtocol = Literal["kitty", "iterm", "words"]

#: A kernel's image is untrusted: an image with more pixels than this could exhaust the terminal's memory, and is only
#: described.
MAX_PIXELS = 40_000_000
#: Kitty's graphics protocol: base64 data is sent in chunks of at most 4096 bytes.
_KITTY_CHUNK = 4096


def protocol_of(env: Mapping[str, str], *, tty: bool, colour: bool) -> ImageProtocol:
    """Return the image protocol of a terminal, from its environment variables."""
    if not tty or not colour:
        return "words"
    if "KITTY_WINDOW_ID" in env or env.get("TERM_PROGRAM") == "ghostty":
        return "kitty"
    return "iterm" if env.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm") else "words"


def described(image: Image) -> str:
    """Return an image's type and size in words."""
    pixels = _pixels(image)
    dimensions = f", {pixels[0]} by {pixels[1]}" if pixels else ""
    return f"[{image.mime}{dimensions}, {size(len(image.data))}]"


def _pixels(image: Image) -> tuple[int, int] | None:
    """Width and height, read from the file's header alone."""
    # Pillow is installed with matplotlib, a dependency of this package. It is imported late, because few commands
    # need it.
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(image.data), formats=("PNG", "JPEG", "GIF", "WEBP")) as opened:
            return opened.size
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return None


def rendered(image: Image, protocol: ImageProtocol) -> str:
    """Return the text that shows an image, without a line end. An image that the protocol can't carry is described."""
    pixels = _pixels(image)
    if pixels is not None and pixels[0] * pixels[1] <= MAX_PIXELS:
        if protocol == "kitty" and image.mime == "image/png":  # f=100: the protocol's only compressed format
            return _kitty(image.data)
        if protocol == "iterm":  # iterm2.com/documentation-images.html
            return f"\x1b]1337;File=inline=1;size={len(image.data)}:{base64.b64encode(image.data).decode()}\a"
    return described(image)


def _kitty(data: bytes) -> str:
    text = base64.b64encode(data).decode()
    chunks = [text[i : i + _KITTY_CHUNK] for i in range(0, len(text), _KITTY_CHUNK)]
    last = len(chunks) - 1
    return "".join(
        f"\x1b_G{'a=T,f=100,' if n == 0 else ''}m={int(n < last)};{chunk}\x1b\\" for n, chunk in enumerate(chunks)
    )
