"""schemathesis against a served instance: the document and the real service agree."""

from __future__ import annotations

import pytest
import rest_fuzz
from served import Served

from kernelsvc.server.native import openapi

DOCUMENT = openapi.openapi("1")


@pytest.fixture(scope="module")
def session(served: Served) -> str:
    return served.call("POST", "/v1/sessions", {"name": "fuzzed"})["id"]


@pytest.mark.thorough  # tests/unit/server/native has the same over kernels that are no processes
@pytest.mark.parametrize("operation", rest_fuzz.operations(DOCUMENT))
def test_answers_are_what_the_document_promises(served: Served, session: str, operation: str) -> None:
    rest_fuzz.drive(served.url, served.token, DOCUMENT, operation, session, examples=rest_fuzz.EXAMPLES // 2)
