import json

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelsvc.errors import CursorExpired, CursorUnknown
from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain
from kernelsvc.model.hash_chain import Head

AT = hash_chain.timestamp(1_700_000_000.25)
GENESIS = Head()


def chain(n, session="s", head=GENESIS):
    made = [ev.Stream(cell=f"c{i}", text=f"line {i}\n") for i in range(n)]
    return hash_chain.stamp(made, session, head, AT)


def test_timestamp_is_utc_with_microseconds():
    assert AT == "2023-11-14T22:13:20.250000Z"
    assert hash_chain.timestamp(0.9999999) == "1970-01-01T00:00:01.000000Z"


def test_stamp_numbers_links_and_fills_the_envelope():
    lines, head = chain(3)
    first, second, _ = (json.loads(line) for line in lines)
    assert (first["seq"], first["prev"], first["session"], first["at"]) == (1, "", "s", AT)
    assert second["prev"] == hash_chain.digest(lines[0])
    assert head == Head(3, hash_chain.digest(lines[2]))


def test_a_chain_goes_on_where_it_ended():
    lines, head = chain(2)
    more, end = hash_chain.stamp([ev.SessionClosed(reason="x")], "s", head, AT)
    found = hash_chain.check(lines + more)
    assert found.fault is None
    assert found.head == end
    assert found.last_type == "session_closed"


def test_unstamp_takes_the_envelope_off():
    event = ev.Stream(text="x")
    hash_chain.stamp([event], "s", Head(), AT)
    hash_chain.unstamp([event])
    assert event == ev.Stream(text="x")


def deep(n):
    value = "x"
    for _ in range(n):
        value = [value]
    return value


@pytest.mark.parametrize(
    "event",
    [
        ev.Stream(text="a\ud800b"),
        ev.Display(data={"text/plain": "\udfff", "application/json": {"k\ud800": ["\ud800"]}}),
        ev.Display(data={"application/json": deep(900)}),
        ev.Display(data={"application/json": deep(100_000)}),
        ev.Display(data={"application/json": 1 << 70_000}),
        ev.Display(data={"application/json": {None: object()}}),
        ev.Result(data={"application/json": float("nan")}),
        ev.Error(ename="E\ud800", evalue="v", traceback=["\ud800"]),
        ev.CellQueued(code="x", metadata={"m": deep(200)}),
    ],
)
def test_whatever_is_stamped_can_be_read_back(event):
    lines, _ = hash_chain.stamp([event], "s", Head(), AT)
    assert b"\n" not in lines[0]
    assert ev.decode(lines[0]) == ev.decode(ev.encode(event))


def test_moderate_nesting_is_kept():
    value = deep(40)
    lines, _ = hash_chain.stamp([ev.Display(data={"application/json": [value] * 50})], "s", Head(), AT)
    assert json.loads(lines[0])["data"]["application/json"] == [value] * 50


# --- what was done to a chain is named --------------------------------------------


@given(n=st.integers(3, 12), data=st.data())
def test_a_removed_entry_is_named(n, data):
    lines, _ = chain(n)
    k = data.draw(st.integers(1, n - 1))
    fault = hash_chain.check(lines[: k - 1] + lines[k:]).fault
    assert (fault.kind, fault.seq) == ("removed", k)


@given(n=st.integers(2, 12), data=st.data())
def test_removed_from_the_end_is_named_with_an_anchor(n, data):
    lines, head = chain(n)
    k = data.draw(st.integers(0, n - 1))
    assert hash_chain.check(lines[:k]).fault is None
    fault = hash_chain.check(lines[:k], anchors=[head]).fault
    assert (fault.kind, fault.seq) == ("truncated", k + 1)


@given(n=st.integers(2, 12), data=st.data())
def test_changed_content_is_named(n, data):
    lines, head = chain(n)
    k = data.draw(st.integers(1, n))
    changed = json.loads(lines[k - 1])
    changed["text"] += "!"
    lines[k - 1] = json.dumps(changed).encode()
    fault = hash_chain.check(lines, anchors=[head]).fault
    assert (fault.kind, fault.seq) == ("changed", k) if k < n else fault.seq <= n


def test_two_neighbours_changed_name_the_first():
    lines, _ = chain(6)
    for k in (2, 3):
        lines[k] = lines[k].replace(b"line", b"lime")
    fault = hash_chain.check(lines).fault
    assert (fault.kind, fault.seq) == ("changed", 3)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_first_entry_put_into_another_session_is_named(n):
    lines, head = chain(n)
    lines[0] = lines[0].replace(b'"session":"s"', b'"session":"t"')
    fault = hash_chain.check(lines, anchors=[head]).fault
    assert (fault.kind, fault.seq) == ("changed", 1)


@given(n=st.integers(2, 12), data=st.data())
def test_any_changed_byte_is_found_at_most_one_entry_off(n, data):
    lines, head = chain(n)
    k = data.draw(st.integers(0, n - 1))
    at = data.draw(st.integers(0, len(lines[k]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b not in (lines[k][at], 10)))
    lines[k] = lines[k][:at] + bytes([byte]) + lines[k][at + 1 :]
    fault = hash_chain.check(lines, anchors=[head]).fault
    assert fault is not None
    assert fault.seq <= k + 1 if k == n - 1 else fault.seq in (k, k + 1)


@given(n=st.integers(4, 12), data=st.data())
def test_a_moved_entry_is_named(n, data):
    lines, _ = chain(n)
    k = data.draw(st.integers(1, n - 1))
    to = data.draw(st.integers(k, n - 1))
    lines.insert(to, lines.pop(k - 1))
    fault = hash_chain.check(lines).fault
    assert (fault.kind, fault.seq) == ("reordered", k)


@given(n=st.integers(3, 12), data=st.data())
def test_an_added_copy_is_named(n, data):
    lines, _ = chain(n)
    source = data.draw(st.integers(0, n - 1))
    at = data.draw(st.integers(source + 1, n))
    lines.insert(at, lines[source])
    fault = hash_chain.check(lines).fault
    assert fault.kind == "added"
    assert fault.seq in (at, at + 1)


@given(n=st.integers(3, 12), data=st.data(), linked=st.booleans())
def test_an_added_forgery_is_named(n, data, linked):
    lines, _ = chain(n)
    at = data.draw(st.integers(1, n - 1))
    prev = hash_chain.digest(lines[at - 1]) if linked else "0" * 64
    forged, _ = hash_chain.stamp([ev.Stream(text="forged")], "s", Head(at, prev), AT)
    lines[at:at] = forged
    fault = hash_chain.check(lines).fault
    assert (fault.kind, fault.seq) == ("added", at + 1)


def test_an_entry_of_another_session_is_named():
    lines, _ = chain(5)
    other, _ = chain(5, session="t")
    lines.insert(3, other[2])
    assert hash_chain.check(lines).fault.kind == "added"


def test_a_chain_computed_anew_is_found_by_its_anchor():
    lines, head = chain(6)
    forged = [ev.decode(line) for line in lines]
    forged[3].text = "forged"
    again, _ = hash_chain.stamp(forged, "s", Head(), AT)
    assert hash_chain.check(again).fault is None
    fault = hash_chain.check(again, anchors=[Head(3, hash_chain.digest(lines[2])), head]).fault
    assert (fault.kind, fault.seq, fault.line) == ("changed", 4, 6)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_never_raises(lines):
    found = hash_chain.check(lines)
    assert found.fault is not None if lines else found.fault is None


@settings(max_examples=examples(100))
@given(st.data())
def test_any_mix_of_acts_is_found(data):
    lines, head = chain(8)
    genuine = list(lines)
    for _ in range(data.draw(st.integers(1, 4))):
        if not lines:
            break
        k = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "copy", "swap", "edit"])):
            case "drop":
                del lines[k]
            case "copy":
                lines.insert(data.draw(st.integers(0, len(lines))), lines[k])
            case "swap":
                lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines.pop(k))
            case "edit":
                lines[k] = lines[k].replace(b"line", b"lime")
    found = hash_chain.check(lines, anchors=[head])
    assert (found.fault is None) == (lines == genuine)
    assert lines[: found.head.seq] == genuine[: found.head.seq] or found.fault.line <= 9


# --- cursors --------------------------------------------------------------------


@given(after=st.integers(-3, 20), last=st.integers(0, 15), first=st.integers(1, 16))
def test_a_cursor_is_known_expired_or_good(after, last, first):
    first = min(first, last + 1)
    if not 0 <= after <= last:
        with pytest.raises(CursorUnknown):
            hash_chain.check_cursor(after, last, first)
    elif after < first - 1:
        with pytest.raises(CursorExpired):
            hash_chain.check_cursor(after, last, first)
    else:
        hash_chain.check_cursor(after, last, first)


@pytest.mark.parametrize("length", [0, 20_000], ids=["counted", "searched"])
@pytest.mark.parametrize("opened", [63, 64, 65])
def test_what_opens_few_brackets_is_shallow(length: int, opened: int) -> None:
    text = b"x" * length + b"[" * (opened - 1) + b"{" + b"}]" * 70
    assert hash_chain.max_depth_ok(text, 64) == (opened <= 64)
