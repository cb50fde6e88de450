"""Drive a served REST surface from its own OpenAPI document.

Each operation gets good and bad requests that schemathesis makes from the
document; each answer must be one that the document promises, and none may be a
500. Real ids are put in place of made-up ones in most cases, else nearly all
answers would be 404.
"""

from __future__ import annotations

from typing import Any

import hypothesis
import requests
import schemathesis
from examples import MORE, examples
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
#: Operations that would end what the others need, or go on for ever.
LEFT_OUT = {"session.close"}
SECONDS = 30
#: Requests for each operation. Each costs some 10 ms of CPU time, most of it in schemathesis.
EXAMPLES = examples(10)


def operations(document: dict[str, Any]) -> list[str]:
    """The ids of what is driven."""
    found = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    return sorted(set(found) - LEFT_OUT)


def drive(url: str, token: str, document: dict[str, Any], operation_id: str, session: str, examples: int) -> int:
    """Send ``examples`` requests to one operation; returns how many were accepted.

    Raises:
        AssertionError: an answer that the document does not promise.
    """
    schema = schemathesis.openapi.from_dict(document)
    operation = schema.find_operation_by_id(operation_id)
    accepted = 0
    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE) | operation.as_strategy(
        generation_mode=GenerationMode.NEGATIVE
    )

    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=not MORE, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases, st.integers(0, 9))
    def run(case: schemathesis.Case, dice: int) -> None:
        nonlocal accepted
        tame(case, session if dice else None)
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        response = case.call(base_url=url, headers=headers, timeout=SECONDS)
        case.validate_response(response, checks=CHECKS)
        # 501 says what this kind of kernel can't do, 503 that the server is full; both in the one shape.
        assert response.status_code < 500 or response.status_code in (501, 503), response.text
        accepted += response.status_code < 300
        if operation_id in ("session.create", "session.branch") and response.status_code == 201:
            made = response.json()
            for each in made if isinstance(made, list) else [made]:
                requests.delete(f"{url}/v1/sessions/{each['id']}", headers=headers, timeout=SECONDS)

    run()
    return accepted


def tame(case: Any, session: str | None) -> None:
    """Keep a case from hanging or filling the machine."""
    if session is not None and "session" in (case.path_parameters or {}):
        case.path_parameters["session"] = session
    if isinstance(case.query, dict):
        case.query.pop("follow", None)
    if isinstance(case.body, dict) and isinstance(case.body.get("limits"), dict):
        # Too little memory to start a kernel in is a limit that only a real one meets.
        case.body["limits"].pop("memory_bytes", None)
    if isinstance(case.body, dict) and isinstance(case.body.get("count"), int):
        case.body["count"] = min(case.body["count"], 2)
