"""What passes between a client and a session's own server, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from kernelsvc.protocol.port_headers import (
    COOKIE,
    PATH_FORM,
    comes_from_other_site,
    end_to_end,
    for_client,
    for_session,
    tickets_of,
)

HOST = "3000-s-0123456789abcdef.example.org"


def sent(*fields: tuple[str, str], **more: Any) -> dict[str, str]:
    given = {"own_origin": True, "keep_authorization": False, "upgrade": False, **more}
    return dict(for_session(fields, local="localhost:3000", host=HOST, scheme="https", **given))


def shown(*fields: tuple[str, str], **more: Any) -> list[tuple[str, str]]:
    given = {"own_origin": True, "base": "", **more}
    return for_client(fields, port=3000, host=HOST, **given)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "X-API-KEY",
        "X-Access-Token",
        "E2B-Traffic-Access-Token",
        "Proxy-Authorization",
        "Transfer-Encoding",
        "TE",
        "Keep-Alive",
        "X-Forwarded-For",
        "Forwarded",
        "X_Forwarded_Host",
        "Content_Length",
    ],
)
@pytest.mark.parametrize("own_origin", [True, False])
def test_what_a_session_must_not_get(name: str, own_origin: bool) -> None:
    assert name not in sent((name, "secret"), own_origin=own_origin)


def test_a_field_that_connection_names_is_left_out() -> None:
    fields = sent(("Connection", "close, X-Hop"), ("X-Hop", "1"), ("X-App", "2"))
    assert "X-Hop" not in fields
    assert fields["X-App"] == "2"
    assert fields["Connection"] == "close"


def test_the_host_is_local_and_the_clients_is_told() -> None:
    fields = sent(("Host", HOST), ("X-Forwarded-Host", "evil"), ("Origin", f"https://{HOST}"))
    assert fields["Host"] == "localhost:3000"
    assert fields["X-Forwarded-Host"] == HOST
    assert fields["Origin"] == "http://localhost:3000"
    assert sent(("Origin", "https://evil.example"))["Origin"] == "https://evil.example"


def test_cookies_pass_to_a_host_of_the_ports_own_without_the_services() -> None:
    cookie = f"a=1; {COOKIE}=t; __Host-{COOKIE}=t; b=2"
    assert sent(("Cookie", cookie))["Cookie"] == "a=1; b=2"
    assert "Cookie" not in sent(("Cookie", f"{COOKIE}=t"))
    assert "Cookie" not in sent(("Cookie", cookie), own_origin=False)
    assert "Referer" not in sent(("Referer", "https://x/v1/ports/TICKET/"), own_origin=False)
    assert tickets_of(cookie) == ["t", "t"]


def test_an_app_gets_its_own_authorization_on_its_own_host_only() -> None:
    given = ("Authorization", "Basic YTpi")
    assert sent(given, keep_authorization=True)["Authorization"] == "Basic YTpi"
    assert "Authorization" not in sent(given, keep_authorization=True, own_origin=False)


def test_an_upgrade_is_written_again() -> None:
    given = (("Connection", "keep-alive, Upgrade"), ("Upgrade", "h2c, websocket"), ("Sec-WebSocket-Key", "k"))
    assert sent(*given, upgrade=True)["Upgrade"] == "websocket"
    assert "Upgrade" not in sent(*given)


@pytest.mark.parametrize(
    "name",
    [
        "X-Accel-Redirect",
        "X-Sendfile",
        "X-Reproxy-URL",
        "Strict-Transport-Security",
        "Alt-Svc",
        "Connection",
        "Upgrade",
        "Keep-Alive",
        "Transfer-Encoding",
        "Trailer",
        "Proxy-Authenticate",
        "NEL",
        "Report-To",
    ],
)
def test_a_response_gives_no_orders_to_proxies_and_other_hosts(name: str) -> None:
    assert name not in dict(shown((name, "x")))


@pytest.mark.parametrize(
    "name",
    [
        "Set-Cookie",
        "Clear-Site-Data",
        "Service-Worker-Allowed",
        "WWW-Authenticate",
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Credentials",
    ],
)
def test_a_response_does_nothing_to_the_services_origin(name: str) -> None:
    assert name in dict(shown((name, "x=1")))
    found = shown((name, "x=1"), ("Content-Security-Policy", "default-src *"), own_origin=False)
    assert name not in dict(found)
    assert [field for field in PATH_FORM if field not in found] == []  # browsers apply all policies of a response
    assert any("sandbox" in value and "allow-same-origin" not in value for _, value in found)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a=b; Domain=example.org; Path=/", "a=b; Path=/"),
        ("a=b; dOMAIN =.example.org", "a=b"),
        ("a=b; Secure", "a=b; Secure"),
        (f"{COOKIE}=x", None),
        (f"__HOST-{COOKIE}=x; Secure", None),
        (f"={COOKIE}=x", None),
        (f" {COOKIE} = x", None),
    ],
)
def test_a_cookie_stays_on_its_host(given: str, kept: str | None) -> None:
    assert [value for name, value in shown(("Set-Cookie", given))] == ([] if kept is None else [kept])


@pytest.mark.parametrize(
    ("given", "moved"),
    [
        ("/next", "/base/next"),
        ("http://localhost:3000/next?a#b", "/base/next?a#b"),
        ("http://127.0.0.1:3000//evil.example/", "/base/evil.example/"),
        ("http://localhost:4000/", "http://localhost:4000/"),
        ("//evil.example/", "//evil.example/"),
        ("next", "next"),
        ("https://example.org/", "https://example.org/"),
        ("http://[bad", "http://[bad"),
    ],
)
def test_redirects_stay_below_the_port(given: str, moved: str) -> None:
    assert dict(shown(("Location", given), base="/base", own_origin=False))["Location"] == moved


@pytest.mark.parametrize(
    ("method", "headers", "foreign"),
    [
        ("GET", {}, False),
        ("GET", {"Sec-Fetch-Site": "same-origin"}, False),
        ("POST", {"Origin": f"https://{HOST}"}, False),
        ("POST", {"Origin": "https://4000-s-0123456789abcdef.example.org"}, True),
        ("POST", {"Origin": "null"}, True),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, True),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, False),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, True),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, True),
    ],
)
def test_pages_of_other_origins_can_not_use_a_persons_cookie(
    method: str, headers: dict[str, str], foreign: bool
) -> None:
    assert comes_from_other_site(headers, method, HOST) is foreign


def test_fields_of_one_hop_are_not_passed_on() -> None:
    kept = [("Host", "h"), ("Content-Length", "1"), ("X-App", "1"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]
    one_hop = ["Keep-Alive", "Proxy-Authorization", "Proxy-Authenticate", "TE", "Trailer", "X-Named", "X-Too"]
    connection = [("Connection", "close, X-Named,Host"), ("connection", "x-too, content-length")]
    assert end_to_end([*kept, *connection, *((name, "v") for name in one_hop)]) == kept
