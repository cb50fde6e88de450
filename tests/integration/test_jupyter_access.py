"""Every route of the Jupyter API: closed without a token, blind to another principal, refused to a foreign page."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import OTHER_PRINCIPAL, Served, serving
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from kernelsvc.server import jupyter

#: Each route of the API, how it is asked for, and whether it names a session.
ROUTES = [
    ("GET", "/api/kernelspecs", False),
    ("GET", "/api/kernelspecs/python3", False),
    ("GET", "/kernelspecs/python3/kernel.json", False),
    ("GET", "/api/kernels", False),
    ("POST", "/api/kernels", False),
    ("GET", "/api/kernels/{kernel}", True),
    ("DELETE", "/api/kernels/{kernel}", True),
    ("POST", "/api/kernels/{kernel}/interrupt", True),
    ("POST", "/api/kernels/{kernel}/restart", True),
    ("GET", "/api/sessions", False),
    ("POST", "/api/sessions", False),
    ("GET", "/api/sessions/{kernel}", True),
    ("DELETE", "/api/sessions/{kernel}", True),
]
OTHER = {"Authorization": "token other-token"}


@pytest.fixture(scope="module")
def two(short_tmp: Path) -> Iterator[Served]:
    """A server with two principals; ``call`` speaks for the first."""
    with serving(short_tmp / "closed", env=OTHER_PRINCIPAL) as instance:
        yield instance


@pytest.fixture(scope="module")
def kernel(two: Served) -> str:
    return str(two.call("POST", "/api/kernels")["id"])


def refused(served: Served, method: str, path: str, headers: dict[str, str], body: Any = None) -> tuple[int, Any]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.call(method, path, body, headers=headers)
    with caught.value as error:
        return error.code, json.loads(error.read())


def test_the_list_of_routes_is_whole() -> None:
    """One more route, and this test asks for its row."""
    assert len(jupyter.routes({})) == len({path for _, path, _ in ROUTES}) - 1 + len(["/api", "channels"])


@pytest.mark.parametrize(("method", "path", "_names"), ROUTES)
@pytest.mark.parametrize("authorization", ["", "token wrong", "Basic dGVzdC10b2tlbg=="])
def test_closed_without_a_token(
    two: Served, kernel: str, method: str, path: str, _names: bool, authorization: str
) -> None:
    code, said = refused(two, method, path.format(kernel=kernel), {"Authorization": authorization})
    assert code == 401
    assert kernel not in json.dumps(said)


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, names in ROUTES if names])
def test_another_principals_session_is_not_there(two: Served, kernel: str, method: str, path: str) -> None:
    assert refused(two, method, path.format(kernel=kernel), OTHER)[0] == 404


@pytest.mark.parametrize("path", ["/api/kernels", "/api/sessions"])
def test_another_principals_session_is_not_listed(two: Served, kernel: str, path: str) -> None:
    assert two.call("GET", path, headers=OTHER) == []


def test_a_session_of_jupyter_takes_no_kernel_of_another(two: Served, kernel: str) -> None:
    body = {"path": "a.ipynb", "type": "notebook", "kernel": {"id": kernel}}
    assert refused(two, "POST", "/api/sessions", OTHER, body)[0] == 404


@pytest.mark.parametrize(("method", "path", "_names"), ROUTES)
def test_a_foreign_page_is_refused(two: Served, kernel: str, method: str, path: str, _names: bool) -> None:
    assert refused(two, method, path.format(kernel=kernel), {"Origin": "https://evil.example"})[0] == 403


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {}, 401),
        ("?token=wrong", {}, 401),
        ("?token=other-token", {}, 404),
        ("?token=test-token", {"Origin": "https://evil.example"}, 403),
    ],
)
async def test_the_channels_are_closed_too(
    two: Served, kernel: str, query: str, headers: dict[str, str], status: int
) -> None:
    url = two.url.replace("http", "ws", 1) + f"/api/kernels/{kernel}/channels{query}"
    with pytest.raises(InvalidStatus) as caught:
        await connect(url, additional_headers=headers).__aenter__()
    assert caught.value.response.status_code == status


def test_nothing_of_this_was_done(two: Served, kernel: str) -> None:
    assert [each["id"] for each in two.call("GET", "/api/kernels")] == [kernel]
