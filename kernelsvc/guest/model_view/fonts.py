"""One font for Chinese, Japanese and Korean text in matplotlib's figures, registered in the template.

matplotlib's own font has no such glyphs: each figure with them draws boxes and writes a warning for each character.
Code also asks for fonts by the names that other systems have. Both get *WenQuanYi Micro Hei*, if it is installed, as
the
fallback for single glyphs and under these names. A font that has such a name itself wins.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

FAMILY = "WenQuanYi Micro Hei"
#: Where Debian's package ``fonts-wqy-microhei`` puts it.
DEBIAN = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"
#: The package of this project that carries the font.
PACKAGE = "kernelsvc_fonts"
ALIASES = (
    *("SimHei", "SimSun", "Microsoft YaHei", "Microsoft JhengHei", "PingFang SC", "PingFang TC", "Heiti SC"),
    *("Heiti TC", "STHeiti", "Hiragino Sans GB", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK JP"),
    *("Noto Sans CJK KR", "Source Han Sans SC", "Source Han Sans CN", "Yu Gothic", "Meiryo", "MS Gothic"),
    *("Malgun Gothic", "NanumGothic", "Arial Unicode MS"),
)


def find() -> str | None:
    """Return the path of the font, or None if it is not installed."""
    try:
        carried: str = importlib.import_module(PACKAGE).path()
    except (ImportError, AttributeError):
        carried = ""
    return next((path for path in (carried, DEBIAN) if path and os.path.isfile(path)), None)


def register(path: str | None = None) -> bool:
    """Register the font with matplotlib, if matplotlib is imported and the font is installed.

    Args:
        path: the font's file. Default: ``find()``.

    Returns:
        Whether figures can show Chinese, Japanese and Korean text.
    """
    manager: Any = sys.modules.get("matplotlib.font_manager")
    path = path or (find() if manager is not None else None)
    if manager is None or path is None:
        return False
    fonts = manager.fontManager
    if not any(entry.fname == path for entry in fonts.ttflist):
        fonts.addfont(path)
    (entry, *_) = [each for each in fonts.ttflist if each.fname == path]
    known = {each.name for each in fonts.ttflist}
    fonts.ttflist += [dataclasses.replace(entry, name=name) for name in (FAMILY, *ALIASES) if name not in known]
    _fall_back(fonts, path)
    return True


def _fall_back(fonts: Any, path: str) -> None:
    """Look for each glyph also in the font, whatever families a figure asks for.

    The setting ``font.family`` can name several families too, but style sheets and ``seaborn.set_theme`` replace it.
    """
    find_paths: Callable[..., list[str]] | None = getattr(fonts, "_find_fonts_by_props", None)
    if find_paths is None or getattr(find_paths, "fallback", None) == path:
        return

    def with_fallback(*args: Any, **kwargs: Any) -> list[str]:
        found = find_paths(*args, **kwargs)
        return found if path in found else [*found, path]

    with_fallback.fallback = path  # type: ignore[attr-defined]
    fonts._find_fonts_by_props = with_fallback
