"""Every rule for a name is said in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kernelsvc
from kernelsvc.model.storage.name_rules import in_words

SOURCES = [path.read_text("utf-8") for path in Path(kernelsvc.__file__).parent.rglob("*.py")]
#: Patterns of fields that are no names: addresses, paths, digests.
OTHERS = ("https?://", r"^/[^\0]*$", "[0-9a-f]{64}", "^([A-Z")
PATTERNS = sorted({found for text in SOURCES for found in re.findall(r'pattern=r"([^"]+)"', text)})


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if not any(other in p for other in OTHERS)])
def test_no_rule_of_a_name_is_shown_as_a_regular_expression(pattern: str) -> None:
    said = in_words(f"Expected `str` matching regex '{pattern}' - at `$.name`")
    assert "regex" not in said
    assert said.endswith(" - at `$.name`")
    assert "letters" in said


def test_the_words() -> None:
    said = in_words("Expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$' - at `$.name`")
    rest = "beginning with letters and digits, at most 64 long - at `$.name`"
    assert said == f"Expected `str` of letters, digits, '.', '_' and '-', {rest}"
    assert in_words("Expected `int`, got `str` - at `$.x`") == "Expected `int`, got `str` - at `$.x`"
