import json

import pytest

from kernelsvc import errors
from kernelsvc.client.http import error_of, query


def test_an_error_object_is_rebuilt():
    sent = errors.LimitTooHigh("memory_bytes is too high", limit="memory_bytes")
    for body in (sent.to_json(), {"error": sent.to_json()}):
        error = error_of(400, json.dumps(body).encode())
        assert isinstance(error, errors.LimitTooHigh)
        assert (error.message, error.details) == ("memory_bytes is too high", {"limit": "memory_bytes"})


@pytest.mark.parametrize(
    ("status", "kind"), [(404, errors.NotFound), (401, errors.Unauthenticated), (418, errors.Internal)]
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b'{"detail": "no"}'])
def test_a_response_without_an_error_object_is_mapped_by_its_status(status, kind, body):
    error = error_of(status, body)
    assert type(error) is kind
    assert str(status) in error.message


def test_query():
    assert query("/x", a=None) == "/x"
    assert query("/x", a="ü b", n=3) == "/x?a=%C3%BC+b&n=3"
