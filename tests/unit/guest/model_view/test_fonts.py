"""Figures with text that matplotlib's own font lacks, in whatever way the code asks for a font."""

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
from matplotlib.testing.compare import compare_images

from kernelsvc.guest.model_view import fonts

#: A font that is always there, in the place of the real one: it shows how names are found.
STAND_IN = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf")
#: Root mean square of the differences of two pictures, from 0 to 255.
TOLERANCE = 12.0
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
    assert manager._find_fonts_by_props(font_manager.FontProperties(family="SimHei"))[0] == STAND_IN
    assert STAND_IN in manager._find_fonts_by_props(font_manager.FontProperties(family="DejaVu Serif"))[1:]


@pytest.mark.parametrize("settings", [{"font.family": "DejaVu Serif"}, {"font.family": "SimHei"}], ids=str)
def test_arabic_is_in_matplotlibs_own_font(
    settings: dict[str, Any], manager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fonts.register(STAND_IN)
    assert draw(settings, "مبيعات", caplog) == []


def test_emoji_are_drawn_without_warnings(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    if fonts.find(fonts.EMOJI) is None:
        pytest.skip(f"the font is not installed: apt-get install {fonts.EMOJI.package}")
    fonts.register()
    for settings in ({}, {"font.family": ["DejaVu Sans", "Segoe UI Emoji"]}, {"font.family": "DejaVu Serif"}):
        assert draw(settings, "\N{ROCKET} \N{CHART WITH UPWARDS TREND} \N{GRINNING FACE}", caplog) == []


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


def test_a_chart_with_chinese_labels_is_the_one_of_the_picture(manager: Any, tmp_path: Path) -> None:
    """Releases of FreeType place and smooth glyphs differently, within a tolerance that boxes exceed."""
    path = fonts.find()
    if path is None:
        pytest.skip(f"the font is not installed: apt-get install {fonts.CJK.package}")

    def picture(name: str) -> str:
        with matplotlib.rc_context({"font.size": 20}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = Figure(figsize=(4, 3), dpi=60)
            ax = figure.subplots()
            ax.bar(["春", "夏", "秋"], [1, 3, 2], color="0.8")
            ax.set_title("各季度銷售額")
            figure.tight_layout()
            figure.savefig(tmp_path / name)
        return str(tmp_path / name)

    expected = str(Path(__file__).with_name("chinese_labels.png"))
    boxes = compare_images(expected, picture("boxes.png"), TOLERANCE)
    fonts.register(path)
    manager._findfont_cached.cache_clear()
    assert compare_images(expected, picture("glyphs.png"), TOLERANCE) is None
    assert boxes is not None


def test_without_matplotlib_nothing_is_imported() -> None:
    code = (
        "import sys; from kernelsvc.guest.model_view import fonts\nassert fonts.register() is False\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
