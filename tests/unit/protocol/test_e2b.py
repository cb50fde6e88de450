"""E2B's wire as functions of values."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kernelsvc.errors import Unauthenticated
from kernelsvc.protocol import e2b


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({"E2b-Sandbox-Id": "s_1", "E2b-Sandbox-Port": "49983"}, ("s_1", 49983)),
        ({"Host": "49999-s_1.e2b.example.org:8888"}, ("s_1", 49999)),
        ({"Host": "49999-s_2.x", "E2b-Sandbox-Id": "s_1"}, ("s_1", None)),
        ({"Host": "127.0.0.1:8888"}, (None, None)),
        ({"E2b-Sandbox-Id": "../x"}, (None, None)),
        ({"E2b-Sandbox-Id": "s_1", "E2b-Sandbox-Port": "999999"}, ("s_1", None)),
    ],
)
def test_a_request_says_which_sandbox_it_means(headers: dict[str, str], address: object) -> None:
    assert e2b.address(headers) == address


def test_the_user_is_the_name_of_basic_authentication() -> None:
    assert e2b.user_of("Basic " + base64.b64encode(b"root:").decode()) == "root"
    assert [e2b.user_of(text) for text in (None, "", "Bearer x", "Basic !", "Basic //8=")] == [""] * 5


def signed(given: str, *, secret: str, **fields: Any) -> bool:
    return e2b.SignedAddress(given=given, **fields).is_signed_with(secret)


def test_a_signature_is_what_the_sdk_makes() -> None:
    # Made with e2b 2.63.0: get_signature("/a b", "read", None, "secret").
    assert e2b.signature("/a b", "read", "", "secret") == "v1_JZ4oARkfyJlGHoJfXYdpTgwbCZQ649Z7s3Tvk4Fy+3U"
    good: dict[str, Any] = {"path": "/a b", "operation": "read", "user": "", "secret": "secret", "expires": 17}
    given = e2b.signature(**good)
    assert signed(given, **good)
    others = {"path": "/b", "operation": "write", "user": "u", "secret": "other", "expires": None}
    assert not any(signed(given, **(good | {name: value})) for name, value in others.items())
    assert not signed("\udcff", **good)


def test_an_address_ends_when_it_says() -> None:
    assert e2b.expiry_of(None, 5.0) is None
    assert e2b.expiry_of("6", 5.0) == 6
    for text in ("4", "x", "-1", "9" * 13):
        with pytest.raises(Unauthenticated):
            e2b.expiry_of(text, 5.0)


def test_what_is_not_there_is_said_in_e2bs_words() -> None:
    assert "was not found" in e2b.gone("s_1")["message"]
    assert "port is not open" in e2b.closed_port("s_1", 80)["message"]


@pytest.mark.parametrize(
    ("path", "operation", "user", "expires"),
    [
        ("/home/user/a", "write", "b:read:", None),
        ("/home/user/a:write:b", "read", "", 1),
        ("/home/user/a:write:b:read", "read", "", None),
        ("/home/user/a:write", "read", "b", None),
    ],
)
def test_a_signature_fits_one_choice_of_fields(
    path: str, operation: e2b.Operation, user: str, expires: int | None
) -> None:
    """The clients join the fields by colons."""
    made = e2b.signature("/home/user/a:write:b", "read", "", "s" * 64)
    assert e2b.SignedAddress(made, "/home/user/a:write:b", "read", "", None).is_signed_with("s" * 64)
    assert not e2b.SignedAddress(made, path, operation, user, expires).is_signed_with("s" * 64)
