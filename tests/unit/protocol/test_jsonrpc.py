"""The native codec: what passes, what is refused, and that nothing else ever escapes it."""

from __future__ import annotations

import contextlib
import inspect
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BY_CODE, BadRequest, Internal, KernelsvcError, NotFound
from kernelsvc.protocol import jsonrpc, methods

NESTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def frame(method="session.get", params=None, **more):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, **more}
    if params is not None:
        body["params"] = params
    return json.dumps(body).encode()


def refused(raw, bounds=jsonrpc.DEFAULT_LIMITS):
    with pytest.raises(jsonrpc.RequestRefused) as caught:
        jsonrpc.decode(raw, bounds)
    return caught.value


def test_execute_is_decoded_with_its_defaults():
    got = jsonrpc.decode(frame("session.execute", {"session": "s1", "code": "1+1", "metadata": {"a": [1]}}))
    assert got.id == 1
    args, kwargs = got.method.arguments(got.params)
    assert args[0] == "s1"
    assert (args[1].code, args[1].on_error, args[1].on_disconnect, args[1].metadata) == (
        "1+1",
        "stop",
        "keep",
        {"a": [1]},
    )
    assert kwargs == {"wait": "finished"}


@pytest.mark.parametrize("id", [1, 1.5, "x", None, -3])
def test_ids_come_back_as_they_were(id):
    got = jsonrpc.decode(frame(params={"session": "s"}, id=id))
    assert got.id == id
    assert json.loads(jsonrpc.encode_result(got.id, {})) == {"jsonrpc": "2.0", "id": id, "result": {}}


def test_a_notification_has_no_id():
    raw = b'{"jsonrpc":"2.0","method":"session.get","params":{"session":"s"}}'
    assert jsonrpc.decode(raw).id is msgspec.UNSET


BAD = [
    (b"", jsonrpc.PARSE_ERROR, "bad_request"),
    (b"{", jsonrpc.PARSE_ERROR, "bad_request"),
    (b"\xff\xfe", jsonrpc.PARSE_ERROR, "bad_request"),
    (
        '{"jsonrpc":"2.0","id":1,"method":"session.get","params":{"session":"\udfff"}}',
        jsonrpc.PARSE_ERROR,
        "bad_request",
    ),
    (b"[]", jsonrpc.INVALID_REQUEST, "bad_request"),
    (b"[" + frame() + b"]", jsonrpc.INVALID_REQUEST, "bad_request"),
    (b"null", jsonrpc.INVALID_REQUEST, "bad_request"),
    (b'{"id":1}', jsonrpc.INVALID_REQUEST, "bad_request"),
    (frame(jsonrpc="1.0"), jsonrpc.INVALID_REQUEST, "bad_request"),
    (frame(extra=1), jsonrpc.INVALID_REQUEST, "bad_request"),
    (frame("nothing.here"), jsonrpc.METHOD_NOT_FOUND, "not_found"),
    (frame(7), jsonrpc.INVALID_REQUEST, "bad_request"),
    (frame(), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame(params=["s1"]), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame(params={"session": 1}), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame(params={"session": "../x"}), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame(params={"session": "s", "sesion": "t"}), jsonrpc.INVALID_PARAMS, "bad_request"),
    (
        frame("session.execute", {"session": "s", "code": "", "timeout_seconds": -1}),
        jsonrpc.INVALID_PARAMS,
        "bad_request",
    ),
    (frame("session.execute", {"session": "s", "code": "", "metadata": {"a": float("nan")}}), None, "bad_request"),
    (
        b'{"jsonrpc":"2.0","id":1,"method":"session.execute","params":{"session":"s","code":"\xff"}}',
        None,
        "bad_request",
    ),
    (frame("session.branch", {"session": "s", "count": 0}), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame("session.create", {"limits": {"memory_bytes": -1}}), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame("session.create", {"env": {"A=B": "c"}}), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame("session.batch", {"session": "s", "cells": []}), jsonrpc.INVALID_PARAMS, "bad_request"),
    (frame("session.drop_checkpoint", {"session": "s"}), "arguments", "bad_request"),
]


@pytest.mark.parametrize(("raw", "code", "error"), BAD)
def test_bad_input_is_refused_with_the_one_shape(raw, code, error):
    if code == "arguments":
        with pytest.raises(KernelsvcError):
            (request := jsonrpc.decode(raw)).method.arguments(request.params)
        return
    got = refused(raw)
    assert code in (None, got.code)
    shape = json.loads(jsonrpc.encode_error(got.id, got.error, got.code))
    assert set(shape) == {"jsonrpc", "id", "error"}
    assert set(shape["error"]["data"]) == {"code", "message", "retryable", "details"}
    assert shape["error"]["data"]["code"] == error


def test_the_id_is_kept_when_it_can_be_read():
    assert refused(frame("nothing.here", id="abc")).id == "abc"
    assert refused(frame(jsonrpc="1.0", id=5)).id == 5
    assert refused(b"[1]").id is None


@pytest.mark.parametrize("deep", [b"[", b'{"a":'])
def test_depth_bombs_are_harmless(deep):
    bomb = b'{"jsonrpc":"2.0","id":1,"method":"session.execute","params":{"session":"s","code":"","metadata":{"a":'
    refused(bomb + deep * 200_000)
    tail = b"]" if deep == b"[" else b"}"
    refused(bomb + deep * 100_000 + b"1" + tail * 100_000 + b"}}}")
    refused(bomb + deep * 70 + b"1" + tail * 70 + b"}}}")
    jsonrpc.decode(bomb + deep * 50 + b"1" + tail * 50 + b"}}}")


def test_numbers_that_are_decoded_for_seconds_are_refused():
    params = b'{"session":"s","code":"1","x":[' + b"1e-320," * 20_000 + b"0]}"
    with pytest.raises(jsonrpc.RequestRefused, match="numbers with a point or an exponent"):
        jsonrpc.decode(b'{"jsonrpc":"2.0","id":1,"method":"session.execute","params":' + params + b"}")
    with pytest.raises(BadRequest, match="numbers with a point or an exponent"):
        jsonrpc.decode_json(msgspec.json.Decoder(), params, "body")


def test_bounds_are_in_bytes():
    bounds = jsonrpc.RequestLimits(frame_bytes=1000, code_bytes=100)
    assert refused(frame("session.execute", {"session": "s", "code": "x" * 101}), bounds).error.code == "too_large"
    jsonrpc.decode(frame("session.execute", {"session": "s", "code": "x" * 100}), bounds)
    wide = json.dumps({"session": "s", "code": "\u00e9" * 60}, ensure_ascii=False)
    raw = '{"jsonrpc":"2.0","id":1,"method":"session.execute","params":' + wide + "}"
    assert refused(raw, bounds).error.code == "too_large"
    assert refused(b" " * 1001, bounds).error.code == "too_large"
    batch = {"session": "s", "cells": [{"code": ""}, {"code": "x" * 101}]}
    assert refused(frame("session.batch", batch), bounds).error.code == "too_large"
    own = {"session": "s", "code": "1", "metadata": {"a": "x" * jsonrpc.OWN_BYTES}}
    assert refused(frame("session.execute", own), jsonrpc.RequestLimits()).error.code == "too_large"


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_refused(raw):
    with contextlib.suppress(jsonrpc.RequestRefused):
        jsonrpc.decode(raw)


@given(
    st.sampled_from(sorted(methods.METHODS)),
    st.dictionaries(
        st.sampled_from(
            ["session", "code", "cell", "cells", "after", "limit", "name", "text", "metadata", "labels", "count"]
        ),
        NESTED,
    ),
)
def test_no_params_raise_anything_but_refused(method, params):
    try:
        jsonrpc.decode(frame(method, params))
    except jsonrpc.RequestRefused as caught:
        json.loads(jsonrpc.encode_error(caught.id, caught.error, caught.code))


@given(NESTED)
def test_results_survive_the_round_trip(value):
    assert json.loads(jsonrpc.encode_result(1, value)) == {"jsonrpc": "2.0", "id": 1, "result": value}


@given(st.dictionaries(st.text(), NESTED))
def test_an_event_is_spliced_byte_for_byte(value):
    line = json.dumps(value).encode()
    framed = jsonrpc.event_frame(line)
    assert line in framed
    raw = framed[framed.index(b'{"jsonrpc"') :]
    assert json.loads(raw) == {"jsonrpc": "2.0", "method": "event", "params": value}
    assert framed == jsonrpc.text_frame(raw)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_text_frames_are_what_the_websockets_library_reads(size):
    from websockets.frames import Frame, Opcode
    from websockets.streams import StreamReader

    reader = StreamReader()
    reader.feed_data(jsonrpc.text_frame(b"a" * size))
    parsing = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    assert done.value.value == Frame(Opcode.TEXT, b"a" * size)


def test_a_result_without_json_is_an_internal_error():
    with pytest.raises(Internal):
        jsonrpc.encode_result(1, "\udc80")


def test_every_error_has_a_frame_even_with_details_that_have_no_json():
    for cls in BY_CODE.values():
        assert json.loads(jsonrpc.encode_error(1, cls()))["error"]["data"]["code"] == cls.code
    assert json.loads(jsonrpc.encode_error(1, NotFound("a\udc80", x=object())))["error"]["data"]["details"] == {}


def test_every_method_calls_the_service_with_arguments_it_takes():
    from kernelsvc.service import api

    samples = {
        "session": "s", "cell": "c", "code": "1", "text": "t", "cells": [{"code": "1"}], "checkpoint": "k",
        "provider": {"id": "p", "instance": "i"}, "offers": [{"name": "f"}], "call": "k.1", "calls": ["k.1"],
        "decision": "deny", "argv": ["ls"], "program": "p", "rows": 1, "columns": 1, "port": 80,
        "status": "ok", "progress": 1.0, "name": "n", "workspace": "w",
    }  # fmt: skip
    for row in methods.METHODS.values():
        if row.calls == "detach":
            continue
        wanted = {f.encode_name for f in msgspec.structs.fields(row.params) if f.required}
        extra = {"checkpoint"} if "drop" in row.name else set()
        own = {"cells": ["c"], "decision": "approve"} if row.name == "session.decide_cells" else {}
        params = msgspec.convert({name: (samples | own)[name] for name in wanted | extra}, row.params)
        args, kwargs = row.arguments(params)
        who = ("who",) if row.who else ()
        client = {"client": None} if row.client else {}
        port, _, name = row.calls.rpartition(".")
        of_port = api.CommandApi if port == "commands" else getattr(api, f"{port.capitalize() or 'Service'}Api")
        inspect.signature(getattr(of_port, name)).bind("self", *who, *args, **kwargs, **client)


def test_cells_are_paged():
    cells = list(range(5))
    assert methods.page_of_cells(cells[:2], 5, 0).next_offset == 2
    assert methods.page_of_cells(cells[4:], 5, 4).next_offset is None
    assert methods.page_of_cells([], 5, 9).next_offset is None
