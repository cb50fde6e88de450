"""Pages of OpenAI's lists."""

from __future__ import annotations

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.protocol.openai.lists import page_of

ITEMS = [{"id": name} for name in "cba"]


def test_a_page_follows_another() -> None:
    first = page_of(ITEMS, {"limit": "2", "order": "desc", "after": ""})
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (["c", "b"], True)
    second = page_of(ITEMS, {"limit": "2", "order": "desc", "after": first["last_id"]})
    assert ([each["id"] for each in second["data"]], second["has_more"]) == (["a"], False)
    assert page_of(ITEMS, {"limit": "1", "order": "asc", "after": ""})["first_id"] == "a"


@pytest.mark.parametrize("wrong", [{"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "z"}])
def test_a_wrong_query_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        page_of(ITEMS, {"limit": "1", "order": "asc", "after": "", **wrong})
