"""Users of an issuer, with a real issuer on loopback whose keys and answers the tests choose."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from waiting import wait_until

from kernelsvc import AsyncClient
from kernelsvc.errors import Forbidden, NotFound, QuotaExceeded, Unauthenticated
from kernelsvc.model.identity.oidc import OidcSettings
from kernelsvc.model.tokens import hash_token, record_for
from kernelsvc.service.access import oidc
from kernelsvc.service.access.principals import Principals
from kernelsvc.settings import Settings
from kernelsvc.store.token_file import TokenFile
from kernelsvc.testing import InProcessServer

SHARED = b"a secret that the issuer shares with others"


class Issuer:
    """An issuer of tokens.

    Attributes:
        keys: private keys by name, of which the public ones are shown.
        answer: the discovery document, or other bytes.
        asked: how often its keys were read.
    """

    def __init__(self) -> None:
        self.keys: dict[str | None, Any] = {"first": ec.generate_private_key(ec.SECP256R1())}
        self.asked = 0
        socket, port = bind_unused_port()
        self.address = f"http://127.0.0.1:{port}"
        self.answer: Any = {"issuer": self.address, "jwks_uri": f"{self.address}/keys"}
        self.key_answer: Callable[[], Any] = self.shown
        app = Application(
            [
                ("/.well-known/openid-configuration", Answer, {"of": lambda: self.answer}),
                ("/keys", Answer, {"of": self}),
            ]
        )
        self.server = HTTPServer(app)
        self.server.add_socket(socket)

    def __call__(self) -> Any:
        self.asked += 1
        return self.key_answer()

    def shown(self) -> dict[str, Any]:
        found = []
        for name, key in self.keys.items():
            kind = (
                jwt.algorithms.ECAlgorithm
                if isinstance(key, ec.EllipticCurvePrivateKey)
                else jwt.algorithms.RSAAlgorithm
            )
            found.append({**kind.to_jwk(key.public_key(), as_dict=True), **({"kid": name} if name else {})})
        return {
            "keys": [
                {"kty": "oct", "k": base64.urlsafe_b64encode(SHARED).decode(), "kid": "shared"},
                {"kty": "unknown"},
                *found,
            ]
        }

    def token(self, *, key: str | None = "first", signed_by: Any = None, alg: str = "ES256", **claims: Any) -> str:
        body = {"iss": self.address, "aud": "kernelsvc", "sub": "ada", "exp": time.time() + 300} | claims
        headers = {"kid": key} if key else {}
        body = {name: value for name, value in body.items() if value is not None}
        return jwt.encode(body, signed_by or self.keys[key], algorithm=alg, headers=headers)


class Answer(RequestHandler):
    def initialize(self, of: Callable[[], Any]) -> None:
        self.of = of

    def get(self) -> None:
        answer = self.of()
        if isinstance(answer, int):
            self.set_status(answer)
        else:
            self.write(answer)


@pytest_asyncio.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    yield made
    made.server.stop()
    await made.server.close_all_connections()


def principals_of(issuer: Issuer, tmp_path: Path, **more: Any) -> Principals:
    settings = OidcSettings(issuer=issuer.address, audience="kernelsvc", **more)
    return Principals([record_for("configured-token")], TokenFile(tmp_path), settings)


@pytest_asyncio.fixture
async def principals(issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Principals]:
    monkeypatch.setattr(oidc, "LEAST_SECONDS", 0.01)
    made = principals_of(issuer, tmp_path)
    following = asyncio.create_task(made.follow_issuer())
    await wait_until(lambda: accepted(made, issuer.token()), what="the keys are read")
    yield made
    following.cancel()


def accepted(principals: Principals, token: str) -> bool:
    try:
        principals.authenticate(token)
    except Unauthenticated:
        return False
    return True


def unsigned(issuer: Issuer) -> str:
    parts = [{"alg": "none", "kid": "first"}, {"iss": issuer.address, "aud": "kernelsvc", "sub": "a", "exp": 9e9}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts) + "."


def signed_with_the_public_key(issuer: Issuer) -> str:
    # PyJWT itself refuses to sign so.
    public = issuer.keys["first"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = issuer.token(signed_by=SHARED, alg="HS256").rpartition(".")[0]
    return body + "." + base64.urlsafe_b64encode(hmac.digest(public, body.encode(), "sha256")).decode().rstrip("=")


REFUSED: dict[str, Callable[[Issuer], str]] = {
    "for another service": lambda issuer: issuer.token(aud="billing"),
    "for no service": lambda issuer: issuer.token(aud=None),
    "of another issuer": lambda issuer: issuer.token(iss="https://id.example"),
    "expired": lambda issuer: issuer.token(exp=time.time() - 60),
    "that never expires": lambda issuer: issuer.token(exp=None),
    "that expires with the universe": lambda issuer: issuer.token(exp=float("inf")),
    "of tomorrow": lambda issuer: issuer.token(nbf=time.time() + 86_400),
    "without a name": lambda issuer: issuer.token(sub=None),
    "without a signature": unsigned,
    "signed by another key": lambda issuer: issuer.token(signed_by=ec.generate_private_key(ec.SECP256R1())),
    "signed with the public key": signed_with_the_public_key,
    "signed with a shared key": lambda issuer: issuer.token(key="shared", signed_by=SHARED, alg="HS256"),
    "of an unknown key": lambda issuer: issuer.token(key="none", signed_by=issuer.keys["first"]),
    "that was changed": lambda issuer: issuer.token().replace(".", ".e", 1),
    "that expires after a number of 400 digits": lambda issuer: issuer.token(exp=10**400),
    "that is no JSON": lambda issuer: "eyJhbGciOiJFUzI1NiJ9.bm8.bm8",
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_token_is_refused(issuer: Issuer, principals: Principals, case: str) -> None:
    with pytest.raises(Unauthenticated):
        principals.authenticate(REFUSED[case](issuer))
    assert principals.authenticate(issuer.token()).name == "oidc/ada"
    assert principals.authenticate("configured-token").name == "local"


async def test_a_new_key_is_found(issuer: Issuer, principals: Principals) -> None:
    issuer.keys = {"second": rsa.generate_private_key(65537, 2048)}
    token = issuer.token(key="second", alg="RS256")
    assert not accepted(principals, token)
    await wait_until(lambda: accepted(principals, token), what="the new key is read")
    assert accepted(principals, issuer.token(key=None, signed_by=issuer.keys["second"], alg="RS256"))


@pytest.mark.parametrize(
    "answer",
    [
        500, b"no", b"[]", b"x" * (2 << 20), {"issuer": "https://id.example"}, {"keys": []}, {"keys": [{"kty": "EC"}]},
        {"keys": 5}, {"keys": {"a": 1}}, b'{"a":' * 100_000,
    ],
    ids=[
        "error", "no JSON", "no object", "too large", "another issuer", "no keys", "a key that is none",
        "keys that are a number", "keys that are an object", "deep",
    ],
)  # fmt: skip
async def test_an_issuer_that_fails_keeps_the_keys_that_were_read(
    issuer: Issuer, principals: Principals, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    good = issuer.answer
    if isinstance(answer, dict) and "keys" in answer:
        issuer.key_answer = lambda: answer
    else:
        issuer.answer = answer
    asked_with_unknown = issuer.token(key="none", signed_by=issuer.keys["first"])
    assert not accepted(principals, asked_with_unknown)
    await wait_until(lambda: "can't be read" in caplog.text, what="the failure is logged")
    assert accepted(principals, issuer.token(sub="grace"))
    issuer.answer, issuer.key_answer = good, issuer.shown
    issuer.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    await wait_until(lambda: accepted(principals, issuer.token(key="second")), what="the issuer is asked again")


@pytest.mark.parametrize(
    "change",
    [{"kid": [1]}, {"alg": ["ES256"]}, {"alg": "none"}, {"alg": "HS256"}, {"crv": [1]}, {"x": 5}, {"d": "AAAA"}],
    ids=str,
)
async def test_a_key_of_another_form_leaves_the_others_usable(
    issuer: Issuer, principals: Principals, change: dict[str, Any]
) -> None:
    issuer.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    good = issuer.shown()["keys"]
    issuer.key_answer = lambda: {"keys": [good[-2] | {"kid": "third"} | change, *good]}
    await wait_until(lambda: accepted(principals, issuer.token(key="second")), what="the keys are read")
    assert not accepted(principals, issuer.token(key="third", signed_by=issuer.keys["first"]))


async def test_keys_of_another_host_need_tls(
    issuer: Issuer, principals: Principals, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.answer = issuer.answer | {"jwks_uri": "http://169.254.169.254/keys"}
    assert not accepted(principals, issuer.token(key="none", signed_by=issuer.keys["first"]))
    await wait_until(lambda: "not https" in caplog.text, what="the failure is logged")


async def test_without_new_keys_the_issuer_is_left_alone(issuer: Issuer, tmp_path: Path) -> None:
    principals = principals_of(issuer, tmp_path)
    following = asyncio.create_task(principals.follow_issuer())
    await wait_until(lambda: accepted(principals, issuer.token()), what="the keys are read")
    for _ in range(100):
        assert not accepted(principals, issuer.token(key="none", signed_by=issuer.keys["first"]))
    assert issuer.asked == 1
    following.cancel()


async def test_a_token_is_valid_until_it_expires(
    issuer: Issuer, principals: Principals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    token = issuer.token(sub="grace")
    hashes = frozenset({hash_token(token), hash_token("unknown")})
    assert principals.void(hashes) == hashes
    who = principals.authenticate(token)
    assert who.name == "oidc/grace"
    assert who in principals.holders()
    assert who not in principals.callers()
    assert principals.void(hashes) == {hash_token("unknown")}
    monkeypatch.setattr(time, "time", lambda: now + 400)
    assert who not in principals.holders()
    assert principals.void(hashes) == hashes


@pytest.mark.parametrize("name", ["oidc", "oidc/ada"])
async def test_no_token_of_this_server_has_the_name_of_a_user(issuer: Issuer, tmp_path: Path, name: str) -> None:
    principals = Principals(
        [record_for("a-token-of-the-backend", name=name), record_for("a-token-of-another", name="shop")],
        TokenFile(tmp_path),
        OidcSettings(issuer=issuer.address, audience="kernelsvc"),
    )
    with pytest.raises(Unauthenticated):
        principals.authenticate("a-token-of-the-backend")
    assert principals.authenticate("a-token-of-another", "ada").name == "shop/ada"


async def test_a_user_is_no_backend_of_users_with_longer_names(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    principals = principals_of(issuer, tmp_path, scopes=["admin"])
    following = asyncio.create_task(principals.follow_issuer())
    await wait_until(lambda: accepted(principals, issuer.token()), what="the keys are read")
    with pytest.raises(Forbidden):
        principals.authenticate(issuer.token(sub="ada"), "grace")
    following.cancel()


async def test_a_token_ends_with_its_key(issuer: Issuer, principals: Principals) -> None:
    lost = issuer.token(sub="mallory", exp=9e12)
    issuer.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    kept = issuer.token(key="second")
    await wait_until(lambda: accepted(principals, kept), what="the second key is read")
    assert accepted(principals, lost)
    del issuer.keys["first"]
    await wait_until(lambda: not accepted(principals, lost) or not _ask(principals, issuer), what="the key is gone")
    assert principals.holders()[-1].name == "oidc/ada"


def _ask(principals: Principals, issuer: Issuer) -> bool:
    """Have the keys read again. True."""
    assert not accepted(principals, issuer.token(key="none", signed_by=issuer.keys["second"]))
    return True


async def test_users_own_their_sessions(issuer: Issuer, tmp_path: Path) -> None:
    rules = OidcSettings(issuer=issuer.address, audience="kernelsvc", max_sessions=1)
    settings = Settings(data_dir=tmp_path, oidc=rules)
    async with InProcessServer(settings) as server:
        principals = server.service._principals
        await wait_until(lambda: accepted(principals, issuer.token()), what="the keys are read")
        async with (
            AsyncClient(server.url, issuer.token()) as ada,
            AsyncClient(server.url, issuer.token(sub="eve")) as eve,
        ):
            session = await ada.create_session()
            assert session.details.principal == "oidc/ada"
            assert (await session.run("print(6 * 7)")).text == "42\n"
            with pytest.raises(NotFound):
                await eve.session(session.id)
            with pytest.raises(QuotaExceeded):
                await ada.create_session()
        # A later token of the same user reaches the session.
        async with AsyncClient(server.url, issuer.token(iat=time.time())) as ada:
            assert (await (await ada.session(session.id)).run("print(1)")).text == "1\n"
