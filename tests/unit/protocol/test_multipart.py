"""Forms with files, in whatever pieces they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelsvc.errors import BadRequest
from kernelsvc.protocol.multipart import MAX_HEADERS, MAX_PARTS, Form, Part, PartEnd, Piece, boundary_of

BOUNDARY = b"x-boundary"


def form(*parts: tuple[str, bytes]) -> bytes:
    said = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\nContent-Type: text/plain\r\n\r\n%s\r\n"
        % (BOUNDARY, names.encode(), body)
        for names, body in parts
    )
    return said + b"--" + BOUNDARY + b"--\r\n"


def taken(pieces: list[Piece]) -> list[tuple[Part, bytes]]:
    found: list[tuple[Part, bytes]] = []
    for piece in pieces:
        if isinstance(piece, Part):
            found.append((piece, b""))
        elif isinstance(piece, bytes):
            found[-1] = (found[-1][0], found[-1][1] + piece)
    assert sum(isinstance(piece, PartEnd) for piece in pieces) == len(found)
    return found


@given(
    bodies=st.lists(st.binary(max_size=60) | st.just(b"\r\n--x-bound"), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_any_cut_gives_the_same_parts(bodies: list[bytes], cuts: list[int]) -> None:
    data = form(*((f'name="file"; filename="{number}"', body) for number, body in enumerate(bodies)))
    reader, pieces = Form(BOUNDARY), []
    for cut in cuts * (len(data) // sum(cuts) + 1):
        pieces += reader.feed(data[:cut])
        data = data[cut:]
    assert reader.complete
    assert taken(pieces) == [(Part("file", str(number)), body) for number, body in enumerate(bodies)]


def test_names_are_those_that_clients_write() -> None:
    pieces = Form(BOUNDARY).feed(form(('name="file"; filename="a %22b%22 é.txt"', b"1"), ("name=plain", b"2")))
    assert [part for part, _ in taken(pieces)] == [Part("file", 'a "b" é.txt'), Part("plain", None)]


def test_a_form_that_is_cut_off_is_not_complete() -> None:
    reader = Form(BOUNDARY)
    reader.feed(form(('name="file"', b"data"))[:-4])
    assert not reader.complete


@pytest.mark.parametrize(
    "data",
    [
        b"--x-boundary\r\nContent-Disposition: form-data\r\n\r\nno name",
        b"--x-boundary\r\nX: " + b"x" * MAX_HEADERS + b"\r\n\r\n",
        b"--x-boundarymore\r\nContent-Disposition: form-data; name=a\r\n\r\n",
        b"--x-boundary" + b"x" * 300,
        b"--x-boundary\r\n" + b"X: y\r\n" * 9 + b"\r\n",
        b"--x-boundary\r\n" + (b"X: " + b"x" * (MAX_HEADERS // 2) + b"\r\n") * 3 + b"\r\n",
        b"--x-boundary\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * (MAX_PARTS + 1),
        b"a preamble\r\n--x-boundary\r\n",
    ],
)
def test_what_is_no_form_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest, match="can't be read"):
        Form(BOUNDARY).feed(data)


def test_a_malformed_form_writes_nothing_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadRequest):
        Form(BOUNDARY).feed(b"--x-boundarymore\r\n")
    assert not caplog.records


def test_the_file_names_of_a_client_keep_their_bytes() -> None:
    (part, _), *_ = taken(Form(BOUNDARY).feed(form(('name="file"; filename="a;b \\"c\\" 文.txt"', b""))))
    assert part.filename == 'a;b "c" 文.txt'
    raw = form(('name="file"; filename="@"', b"")).replace(b'"@"', b'"\xff"')
    assert taken(Form(BOUNDARY).feed(raw))[0][0].filename == "\udcff"


def test_boundaries() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of("multipart/form-data") is None
    assert boundary_of("application/octet-stream; boundary=x") is None
