"""WenQuanYi Micro Hei, a font for Chinese, Japanese and Korean text. Apache-2.0, or GPL-3+ with font exception."""

from __future__ import annotations

import os


def path() -> str:
    """Return the path of the font's file. It is missing if the package was built without ``fetch``."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "wqy-microhei.ttc")
