"""Fonts for text that matplotlib's own font lacks, registered in the template.

A figure whose font lacks a glyph draws a box and writes a warning. So each glyph is also looked for in *WenQuanYi Micro
Hei* (Chinese, Japanese, Korean) and *Symbola* (emoji), as far as they are installed, and in matplotlib's own *DejaVu
Sans*, which has Arabic. Code also asks for fonts by the names that other systems have. These are further names of the
same fonts. A font that has such a name itself wins.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Fallback(NamedTuple):
    """A font that figures fall back to.

    Attributes:
        scripts: the text that it is for, in words.
        debian: where Debian's package puts it.
        package: Debian's package.
        names: names under which code asks for such a font.
    """

    scripts: str
    debian: str
    package: str
    names: tuple[str, ...]


CJK = Fallback(
    "Chinese, Japanese and Korean text",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "fonts-wqy-microhei",
    (
        *("WenQuanYi Micro Hei", "SimHei", "SimSun", "Microsoft YaHei", "Microsoft JhengHei", "PingFang SC"),
        *("PingFang TC", "Heiti SC", "Heiti TC", "STHeiti", "Hiragino Sans GB", "Noto Sans CJK SC"),
        *("Noto Sans CJK TC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "Source Han Sans CN"),
        *("Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic", "NanumGothic", "Arial Unicode MS"),
    ),
)
EMOJI = Fallback(
    "emoji",
    "/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf",
    "fonts-symbola",
    ("Symbola", "Noto Emoji", "Noto Color Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Apple Color Emoji"),
)
#: The package of this project that carries the fonts.
PACKAGE = "kernelsvc_fonts"


def find(font: Fallback = CJK) -> str | None:
    """Return the path of a font, or None if it is not installed."""
    try:
        carried = os.path.dirname(importlib.import_module(PACKAGE).path())
    except (ImportError, AttributeError):
        carried = ""
    places = [os.path.join(carried, os.path.basename(font.debian))] if carried else []
    return next((path for path in (*places, font.debian) if os.path.isfile(path)), None)


def register(path: str | None = None) -> bool:
    """Register the fonts with matplotlib, if matplotlib is imported.

    Args:
        path: the file of the font for Chinese, Japanese and Korean. Default: ``find()``.

    Returns:
        Whether figures can show Chinese, Japanese and Korean text.
    """
    manager: Any = sys.modules.get("matplotlib.font_manager")
    if manager is None:
        return False
    fonts = manager.fontManager
    path = path or find()
    added = []
    for font, file in ((CJK, path), (EMOJI, find(EMOJI))):
        if file is not None:
            _add(fonts, file, font.names)
            added.append(file)
    own = os.path.join(sys.modules["matplotlib"].get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    _fall_back(fonts, [*added, own])
    return path is not None


def _add(fonts: Any, path: str, names: tuple[str, ...]) -> None:
    """Add a font, also under names that no other font has."""
    if not any(entry.fname == path for entry in fonts.ttflist):
        fonts.addfont(path)
    (entry, *_) = [each for each in fonts.ttflist if each.fname == path]
    known = {each.name for each in fonts.ttflist}
    fonts.ttflist += [dataclasses.replace(entry, name=name) for name in names if name not in known]


def _fall_back(fonts: Any, paths: list[str]) -> None:
    """Look for each glyph also in these fonts, whatever families a figure asks for.

    The setting ``font.family`` can name several families too, but style sheets and ``seaborn.set_theme`` replace it.
    """
    find_paths: Callable[..., list[str]] | None = getattr(fonts, "_find_fonts_by_props", None)
    if find_paths is None or getattr(find_paths, "fallback", None) == paths:
        return

    def with_fallback(*args: Any, **kwargs: Any) -> list[str]:
        found = find_paths(*args, **kwargs)
        return [*found, *(path for path in paths if path not in found)]

    with_fallback.fallback = paths  # type: ignore[attr-defined]
    fonts._find_fonts_by_props = with_fallback
