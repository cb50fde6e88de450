"""Secrets in requests, and their absence from answers."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest
from kernelsvc.model.network.policy import check_secrets
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.network.secrets import Redactor, SecretSource, with_secrets
from kernelsvc.settings import describe, load

VALUES = {"api": b"sk-0123456789", "api-2": b"sk-2222222222"}
API = {"host": "api.test", "inject": {"Authorization": "Bearer ${api}"}}


def rules(*allow):
    return msgspec.convert({"allow": list(allow)}, NetworkRules)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"host": "*.api.test", "secrets": ["api"]}, "one exact name"),
        ({"host": "*", "secrets": ["api"]}, "one exact name"),
        ({"host": "8.8.8.8", "secrets": ["api"]}, "need a name"),
        ({"host": "api.test:80", "secrets": ["api"]}, "over TLS only"),
        ({"host": "api.test", "ports": [80, 443], "secrets": ["api"]}, "over TLS only"),
        (API | {"inject": {"Host": "evil.test"}}, "not a header"),
        (API | {"inject": {"Transfer-Encoding": "chunked"}}, "not a header"),
        (API | {"inject": {"Content_Length": "3"}}, "not a header"),
        (API | {"inject": {"A B": "x"}}, "not a header"),
        (API | {"inject": {"X": "a\r\nHost: evil.test"}}, "ASCII text"),
        (API | {"inject": {"X": "${a b}"}}, "ASCII text"),
        (API | {"inject": {f"X-{n}": "x" for n in range(17)}}, "may set 16"),
    ],
)
def test_a_rule_with_a_secret_is_for_one_name_over_tls(rule, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        rules(rule)


def test_a_rule_with_a_secret_has_port_443_and_says_its_secrets():
    (rule,) = rules(API | {"secrets": ["other"], "methods": ["POST"]}).parsed()
    assert rule.ports == (443,)
    assert rule.secrets == ["other", "api"]
    assert rule.text == "api.test (POST; secret other; secret api)"
    assert rule.reads_requests()


@pytest.mark.parametrize(
    ("wanted", "covered"),
    [
        (API, True),
        ("api.test:443", True),
        ({"host": "api.test", "ports": [443], "methods": ["GET"]}, True),
        ({"host": "api.test", "secrets": ["api"]}, True),
        ("api.test", False),
        ({"host": "api.test", "secrets": ["other"]}, False),
        (API | {"inject": {"X-Key": "${api}"}}, False),
    ],
)
def test_a_session_gets_at_most_the_secrets_of_the_servers_rule(wanted, covered):
    ceiling, asked = rules(API), rules(wanted)
    assert (ceiling.uncovered(asked) is None) is covered
    if covered:
        # The operator's header stays, so that no session brings an account of its own.
        (got,) = ceiling.restricted_to(asked).parsed()
        assert got.inject == API["inject"]


SOURCES = {"api": SecretSource(hosts=("api.test",), env="KEY")}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"host": "evil.test", "secrets": ["api"]}, "may be sent to api.test only"),
        ({"host": "api.test", "inject": {"X": "${gone}"}}, "no secret 'gone'. This server has api"),
    ],
)
def test_a_secret_is_used_for_its_hosts_only(rule, words):
    check_secrets(rules(API, "ok.test"), SOURCES)
    with pytest.raises(ValueError, match=words):
        check_secrets(rules(rule), SOURCES)


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ({"hosts": ["api.test"]}, "one of 'file', 'command' and 'env'"),
        ({"hosts": ["api.test"], "file": "/a", "env": "B"}, "one of"),
        ({"hosts": [], "env": "B"}, "needs 'hosts'"),
        ({"hosts": ["*.api.test"], "env": "B"}, "not the name of a host"),
        ({"hosts": ["10.0.0.1"], "env": "B"}, "an address"),
        ({"hosts": ["API.test"], "env": "B"}, "write api.test"),
        ({"hosts": ["api.test"], "value": "sk-leaked"}, "unknown field"),
    ],
)
def test_settings_refuse_a_secret_that_is_none(secret, words):
    with pytest.raises(BadRequest, match=words) as raised:
        load({"secrets": msgspec.json.encode({"api": secret}).decode()}, {})
    assert "sk-leaked" not in raised.value.message


def test_settings_refuse_rules_with_unknown_secrets(tmp_path):
    file = tmp_path / "server.toml"
    text = '[limits.network]\nallow = [{ host = "api.test", secrets = ["api"] }]\n'
    file.write_text(text)
    with pytest.raises(BadRequest, match=r"no secret 'api'\. This server has no secrets"):
        load({"config": str(file)}, {})
    file.write_text(f'{text}[secrets.api]\nhosts = ["api.test"]\nfile = "/run/keys/api"\n')
    settings = load({"config": str(file)}, {})
    assert settings.secrets["api"].file == "/run/keys/api"
    shown = {row["name"]: row["value"] for row in describe(settings)}
    assert shown["secrets"] == {"api": {"hosts": ("api.test",), "file": "/run/keys/api"}}


def sent(*headers, inject=None, placeholders=()):
    made, hidden = with_secrets(headers, VALUES, inject or {}, placeholders)
    assert made.pop() == (b"accept-encoding", b"identity")
    return made, hidden


def test_an_injected_header_replaces_every_credential_of_the_session():
    own = [(b"authorization", b"mine"), (b"x-api-key", b"mine"), (b"x_api_key", b"mine"), (b"cookie", b"mine")]
    made, _ = sent(*own, (b"x-team", b"a"), (b"x_key", b"mine"), inject={"X-Key": "k ${api}!"})
    assert made == [(b"x-team", b"a"), (b"x-key", b"k sk-0123456789!")]


@pytest.mark.parametrize(
    ("field", "value", "replaced"),
    [
        (b"authorization", b"token kernelsvc-secret-api", b"token sk-0123456789"),
        (b"x-key", b"kernelsvc-secret-api-2", b"sk-2222222222"),
        (b"x-key", b"kernelsvc-secret-apikernelsvc-secret-api", b"sk-0123456789sk-0123456789"),
        (b"x-key", b"kernelsvc-secret-other", b"kernelsvc-secret-other"),
        (b"user-agent", b"kernelsvc-secret-api", b"kernelsvc-secret-api"),
        (b"user_agent", b"kernelsvc-secret-api", b"kernelsvc-secret-api"),
        (b"x_request-id", b"kernelsvc-secret-api", b"kernelsvc-secret-api"),
        (b"authorization", b"Basic " + base64.b64encode(b"me:kernelsvc-secret-api"), None),
        (b"authorization", b"Basic kernelsvc-secret-api", b"Basic kernelsvc-secret-api"),
    ],
)
def test_a_placeholder_is_replaced_where_servers_read_credentials(field, value, replaced):
    ((_, got),), hidden = sent((field, value), placeholders=["api", "api-2"])
    if replaced is None:
        assert base64.b64decode(got[6:]) == b"me:sk-0123456789"
        assert got[6:] in hidden
    else:
        assert got == replaced


def test_a_placeholder_without_a_rule_stays():
    ((_, got),), _ = sent((b"authorization", b"kernelsvc-secret-api-2"), placeholders=[])
    assert got == b"kernelsvc-secret-api-2"


def test_answers_are_asked_for_whole_and_not_compressed():
    made, _ = sent((b"accept-encoding", b"gzip"), (b"range", b"bytes=0-0"), (b"if-range", b"x"), (b"if_range", b"x"))
    assert made == []


SECRET = b's3cr/t+"key"-\'\\%'
ANSWERS = [
    SECRET,
    b"x=s3cr%2Ft%2B%22key%22-%27%5C%25",
    b'{"k": "s3cr/t+\\"key\\"-\'\\\\%"}',
    *(base64.b64encode(b"u" * offset + SECRET + b":tail") for offset in range(4)),
    base64.urlsafe_b64encode(b"user:" + SECRET),
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_value_is_starred_in_each_form_and_across_pieces(answer, size):
    redactor = Redactor([SECRET])
    text = b"before " + answer + b" after"
    got = b"".join(redactor.feed(text[at : at + size]) for at in range(0, len(text), size)) + redactor.flush()
    assert len(got) == len(text)
    assert got.startswith(b"before ")
    assert got.endswith(b" after")
    assert b"*" * 16 in got


@given(st.lists(st.sampled_from([b"s3cretkey", b"s3c", b"ret", b"key", b"s", b"-", b"s3cretke"]), max_size=12))
def test_no_split_of_a_stream_lets_a_value_through(pieces):
    redactor = Redactor([b"s3cretkey"])
    whole = b"".join(pieces)
    got = b"".join(map(redactor.feed, pieces)) + redactor.flush()
    assert got == whole.replace(b"s3cretkey", b"*" * 9)


def test_a_field_hides_no_value_in_its_name():
    fields = [(b"x-s3cretkey-x", b"a S3cretKey b"), (b"date", b"now")]
    assert Redactor([b"S3cretKey"]).fields(fields) == [(b"x-*********-x", b"a ********* b"), (b"date", b"now")]
    assert Redactor([]).fields(fields) == fields


def test_bytes_that_begin_no_value_are_not_held_back():
    redactor = Redactor([b"s3cretkey"])
    assert redactor.feed(b"data: token\n\n") == b"data: token\n\n"
    assert Redactor([]).feed(b"s3cret") == b"s3cret"


def test_a_rule_that_sets_headers_drops_a_key_in_the_name_of_a_subprotocol():
    offered = [(b"sec-websocket-protocol", b"realtime, openai-insecure-api-key.mine"), (b"x", b"1")]
    made, _ = with_secrets(offered, VALUES, API["inject"], ())
    assert dict(made)[b"sec-websocket-protocol"] == b"realtime"
    made, _ = with_secrets([(b"sec-websocket-protocol", b"my-token")], VALUES, API["inject"], ())
    assert b"sec-websocket-protocol" not in dict(made)
    assert with_secrets(offered, VALUES, {}, ("api",))[0][0] == offered[0]


ODD = "ab/CD+ef=gh&ij'kl<m>\"n"
#: What encoders in use make of that value.
ENCODED = {
    "Python, JSON": r"ab/CD+ef=gh&ij'kl<m>\"n",
    "PHP, JSON": r"ab\/CD+ef=gh&ij'kl<m>\"n",
    "Go, JSON": r"ab/CD+ef=gh\u0026ij'kl\u003cm\u003e\"n",
    "Gson, JSON": r"ab/CD+ef\u003dgh\u0026ij\u0027kl\u003cm\u003e\"n",
    "PHP with JSON_HEX": r"ab\/CD+ef=gh\u0026ij\u0027kl\u003Cm\u003E\"n",
    "encodeURIComponent": "ab%2FCD%2Bef%3Dgh%26ij'kl%3Cm%3E%22n",
    "encodeURI": "ab/CD+ef=gh&ij'kl%3Cm%3E%22n",
    "a path": "ab/CD%2Bef%3Dgh%26ij%27kl%3Cm%3E%22n",
    "HTML": "ab/CD+ef=gh&amp;ij&#x27;kl&lt;m&gt;&quot;n",
    "HTML of Go": "ab/CD+ef=gh&amp;ij&#39;kl&lt;m&gt;&#34;n",
    "HTML text": "ab/CD+ef=gh&amp;ij'kl&lt;m&gt;\"n",
}


@pytest.mark.parametrize("shown", ENCODED.values(), ids=ENCODED)
def test_a_value_is_hidden_in_the_form_of_each_usual_encoder(shown: str) -> None:
    redactor = Redactor([ODD.encode()])
    assert redactor.text(f"<{shown}>".encode()) == b"<" + b"*" * len(shown) + b">"
    parts = [redactor.feed(shown[at : at + 1].encode()) for at in range(len(shown))]
    assert b"".join(parts) + redactor.flush() == b"*" * len(shown)
