"""Methods and paths of rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.model.network.requests import RequestConditions, is_plain_path, parse_conditions

PATHS = st.sampled_from(["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/*", "/a*", "/a/*", "/a/b*"])
METHODS = st.sampled_from(["GET", "POST", "PUT"])
CONDITIONS = st.builds(
    RequestConditions, st.lists(METHODS, max_size=2).map(tuple), st.lists(PATHS, max_size=2).map(tuple)
)


@given(CONDITIONS, CONDITIONS, METHODS, PATHS.filter(lambda path: "*" not in path))
def test_conditions_that_cover_others_allow_what_those_allow(own, other, method, path):
    if own.cover(other) and other.allow(method, path):
        assert own.allow(method, path)


@pytest.mark.parametrize("path", ["/", "/a/b.c", "/a%20b", "/a.b/..c", "/%E2%82%AC"])
def test_a_path_with_one_reading_is_plain(path):
    assert is_plain_path(path)


@pytest.mark.parametrize(
    "path", ["", "*", "a", "//", "/a//b", "/.", "/./a", "/..", "/a\\b", "/a;b", "/%2F", "/%2e", "/%5C"]
)
def test_a_path_with_two_readings_is_not(path):
    assert not is_plain_path(path)


def test_conditions_are_shown_as_they_were_written():
    assert str(parse_conditions(["GET", "POST"], ["/a/*"], "a.test")) == "GET, POST; /a/*"
    assert str(parse_conditions([], [], "a.test")) == ""
