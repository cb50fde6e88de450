"""Arguments of ``kernelsvc branch``. tests/acceptance/test_cli.py runs the command."""

import pytest

from kernelsvc.cli.sessions.branch import labels_of
from kernelsvc.errors import BadRequest


def test_labels_are_pairs():
    assert labels_of([]) == {}
    assert labels_of(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


@pytest.mark.parametrize("word", ["a", "=1", ""])
def test_a_label_without_name_or_value_is_refused(word):
    with pytest.raises(BadRequest, match="NAME=VALUE"):
        labels_of([word])
