import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.tracing.target import TelemetrySettings, find_endpoint, target_of

BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
WHOLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("setting", "env", "url"),
    [
        ("", {}, ""),
        ("http://h:4318", {}, "http://h:4318/v1/traces"),
        ("http://h:4318/", {BASE: "http://other:1"}, "http://h:4318/v1/traces"),
        ("https://h/api/public/otel/v1/traces", {}, "https://h/api/public/otel/v1/traces"),
        ("", {BASE: "https://h/otel"}, "https://h/otel/v1/traces"),
        ("", {BASE: "http://h:1", WHOLE: "http://t:2/custom"}, "http://t:2/custom"),
        ("http://h:4318", {"OTEL_SDK_DISABLED": "TRUE"}, ""),
    ],
)
def test_the_address_follows_the_settings_then_opentelemetrys_variables(setting, env, url):
    assert find_endpoint(TelemetrySettings(endpoint=setting), env) == url


@pytest.mark.parametrize(
    "url",
    [
        *("h:4318", "grpc://h:4317", "http://", "http://[x", "http://h:99999", "http://h:0", "http://h:x"),
        *("http://user:secret@h:4318", "http://secret@h", "http://:secret@h", "http://@h", "http://user:secret@"),
        *("grpc://user:secret@h", "user:secret@h", "http://user:secret@[x", "http://user:secret@h:x"),
    ],
)
def test_another_address_is_refused_and_no_password_is_shown(url):
    with pytest.raises(BadRequest) as raised:
        find_endpoint(TelemetrySettings(endpoint=url), {})
    assert "secret" not in str(raised.value)


def target(env, headers="", **settings):
    settings = {"endpoint": "http://h:4318", **settings}
    found = target_of(TelemetrySettings(**settings), env, headers, instance="box:/data", version="1.0", host="box")
    assert found is not None
    return found


def test_headers_of_the_variables_and_the_file():
    env = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b,x=1"}
    assert target(env).headers == {"api-key": "a b", "x": "1"}
    text = "# no comment\nx=2"
    with pytest.raises(BadRequest, match="headers_file"):
        target(env, text)
    assert target(env, "x=2\n\nAuthorization=Basic a=b%20\n").headers == {
        "api-key": "a b",
        "x": "2",
        "Authorization": "Basic a=b%20",
    }


@pytest.mark.parametrize("value", ["secret", "=secret", "a=sec\r\nret", "a=secret%0d%0aX: y"])
def test_a_bad_header_is_refused_and_not_shown(value):
    with pytest.raises(BadRequest) as raised:
        target({"OTEL_EXPORTER_OTLP_HEADERS": value})
    assert "sec" not in str(raised.value)


def test_the_resource_names_the_server():
    env = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod,service.name=from-attributes"}
    assert target(env).resource == {
        "service.name": "from-attributes",
        "service.version": "1.0",
        "service.instance.id": "box:/data",
        "host.name": "box",
        "deployment.environment.name": "prod",
    }
    assert target({**env, "OTEL_SERVICE_NAME": "mine"}).resource["service.name"] == "mine"
    assert target({}).resource["service.name"] == "kernelsvc"


@pytest.mark.parametrize(("text", "seconds"), [("", 10.0), ("2500", 2.5), ("0", 0.1), ("9999999", 60.0), ("x", 10.0)])
def test_the_time_for_a_request_has_limits(text, seconds):
    assert target({"OTEL_EXPORTER_OTLP_TIMEOUT": text}).seconds == seconds


def test_compression_can_be_turned_off():
    assert target({}).compress
    assert not target({"OTEL_EXPORTER_OTLP_COMPRESSION": "none"}).compress
