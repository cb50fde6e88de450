"""Figures with Chinese, Japanese and Korean text, in whatever way the code asks for a font."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from kernelsvc.guest.model_view import fonts

#: A font that is always there, in the place of the real one: it shows how names are found.
STAND_IN = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf")
WAYS: list[dict[str, Any]] = [
    {},
    {"font.sans-serif": ["SimHei", "Microsoft YaHei"]},
    {"font.family": "Noto Sans CJK JP"},
    {"font.family": ["Malgun Gothic", "DejaVu Sans"]},
    {"font.family": "sans-serif", "font.sans-serif": ["Arial", "DejaVu Sans"]},
    {"font.family": "Yu Gothic", "axes.unicode_minus": False},
]


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    known = font_manager.fontManager
    monkeypatch.setattr(known, "ttflist", list(known.ttflist))
    yield known
    known.__dict__.pop("_find_fonts_by_props", None)
    known._findfont_cached.cache_clear()


def draw(settings: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Draw a figure, and return the warnings and log records about it."""
    caplog.clear()
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        figure = Figure()
        ax = figure.subplots()
        ax.plot([-1, 2])
        ax.set_title(text)
        figure.savefig(io.BytesIO())
    return [str(each.message) for each in seen] + caplog.messages


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_names_of_other_systems_are_found(
    settings: dict[str, Any], manager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert fonts.register(STAND_IN)
    assert fonts.register(STAND_IN)
    with caplog.at_level(logging.WARNING, "matplotlib"):
        assert draw(settings, "title", caplog) == []
    assert len(fonts.ALIASES) == 22
    assert manager._find_fonts_by_props(font_manager.FontProperties(family="SimHei")) == [STAND_IN]
    assert manager._find_fonts_by_props(font_manager.FontProperties(family="DejaVu Serif"))[-1] == STAND_IN


def test_a_font_that_has_the_name_itself_wins(manager: Any) -> None:
    real = font_manager.FontEntry(fname="/real.ttf", name="SimHei")
    manager.ttflist.append(real)
    fonts.register(STAND_IN)
    assert [each for each in manager.ttflist if each.name == "SimHei"] == [real]


def test_a_chart_in_three_scripts_draws_without_warnings(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = fonts.find()
    if path is None:
        pytest.skip("the font is not installed: apt-get install fonts-wqy-microhei")
    fonts.register(path)
    with caplog.at_level(logging.WARNING, "matplotlib"):
        for settings in WAYS:
            assert draw(settings, "销售额 売上げ 매출 \N{MINUS SIGN}1", caplog) == []


def test_without_matplotlib_nothing_is_imported() -> None:
    code = (
        "import sys; from kernelsvc.guest.model_view import fonts\nassert fonts.register() is False\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
