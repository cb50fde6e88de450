"""The log in the console, and its verification in the page: the same verdicts as the command line's."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from typing import Any

import pytest
from browsing import run_cells
from waiting import wait_for

from kernelsvc.store.verify import verify_journal

pytestmark = pytest.mark.timeout(180)
VERIFY = """async ([text, key]) => {
  const { verifyLog } = await import("/console/verify.js");
  return verifyLog(new Blob([text]).stream(), { key });
}"""


def changed(lines: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """One change of a log, and its kind."""
    at = rng.randrange(1, len(lines) - 1)
    other = lines.copy()
    match rng.randrange(5):
        case 0:
            event = json.loads(other[at])
            event["at"] = "2020" + event["at"][4:]
            other[at] = json.dumps(event, separators=(",", ":"))
            return "changed", other
        case 1:
            del other[at]
            return "removed", other
        case 2:
            other.insert(at, other[at])
            return "added", other
        case 3 if at < len(lines) - 2:
            other[at], other[at + 1] = other[at + 1], other[at]
            return "moved", other
        case _:
            return "truncated", other[:at]


def test_the_page_and_the_command_line_agree_on_each_changed_log(console: Any) -> None:
    view = console()
    served = view.served
    session = run_cells(served, "x = 1", "print('é\\u2028', '\\ud83d\\ude00')", "1/0")
    served.call("DELETE", f"/v1/sessions/{session}")
    text = (served.data_dir / "sessions" / session / "journal.jsonl").read_text("utf-8")
    key = served.call("GET", "/v1/info")["public_key"]
    page = view.open(f"/s/{session}/log")
    page.get_by_role("button", name="Verify in this page").wait_for()
    lines = text.removesuffix("\n").split("\n")
    good = page.evaluate(VERIFY, [text, key])
    assert (good["result"], good["entries"], good["key"]) == ("verified", len(lines), key)
    assert good["head"] == verify_journal([line.encode() for line in lines], public_key=key).head
    rng = random.Random(7)
    results = set()
    for _ in range(60):
        kind, other = changed(lines, rng)
        found = page.evaluate(VERIFY, ["\n".join(other) + "\n", key])
        expected = verify_journal([line.encode() for line in other], public_key=key)
        assert found["result"] == expected.result, (kind, found, expected)
        results.add((kind, found["result"]))
        if kind != "truncated":
            assert found["fault"], kind
            assert found["fault"]["seq"] <= expected.fault.line, (kind, found, expected)
    assert ("truncated", "not_proven") in results
    # An own chain with an own signature is no proof, and a torn line is a fault.
    assert page.evaluate(VERIFY, [text, "A" * 43 + "="])["result"] == "not_proven"
    assert page.evaluate(VERIFY, [text[:-30], key])["result"] == "not_as_written"
    forged = text.replace('"signature":"', '"signature":"AAAA', 1)
    assert page.evaluate(VERIFY, [forged, key])["result"] == "not_as_written"


def test_the_pages_sha_256_is_that_of_hashlib(console: Any) -> None:
    """Every length around the ends of blocks (FIPS 180-4, section 5.1.1), and a message of many blocks."""
    messages = [random.Random(n).randbytes(n) for n in (*range(200), 100_003)]
    script = """async (texts) => {
      const { sha256 } = await import("/console/sha256.js");
      return texts.map((text) => sha256(Uint8Array.from(atob(text), (char) => char.charCodeAt(0))));
    }"""
    found = console().open().evaluate(script, [base64.b64encode(each).decode() for each in messages])
    assert found == [hashlib.sha256(each).hexdigest() for each in messages]


def test_the_log_is_shown_verified_and_a_fault_is_named(console: Any, accessibility: Any) -> None:
    view = console()
    served = view.served
    session = run_cells(served, "x = 1", "print('in the log')")
    served.call("DELETE", f"/v1/sessions/{session}")
    page = view.open(f"/s/{session}/log")
    page.get_by_text("in the log").first.wait_for()
    page.get_by_role("button", name="Verify in this page").click()
    page.get_by_text("Verified", exact=True).wait_for()
    assert accessibility(view) == []
    # The server lies: it sends a log in which one entry is another.
    text = (
        (served.data_dir / "sessions" / session / "journal.jsonl")
        .read_text("utf-8")
        .replace("in the log", "in tHe log")
    )
    page.route("**/journal", lambda route: route.fulfill(body=text, content_type="application/x-ndjson"))
    page.get_by_role("button", name="Verify in this page").click()
    page.get_by_text("Not as it was written").wait_for()
    page.get_by_role("button", name="Go to entry").click()
    page.get_by_label("Type, cell or principal").fill("cell_finished")
    page.get_by_text("cell_finished").first.wait_for()
    page.get_by_text("cell_finished").first.click()
    page.get_by_role("group", name="The event as JSON").first.wait_for()
    assert accessibility(view) == []


def test_the_key_is_that_of_the_sessions_node(console: Any) -> None:
    """A front answers for several nodes. An entry is signed by the node that has the session."""
    view = console()
    info = {**view.served.call("GET", "/v1/info"), "public_keys": {"aaaaaa": "key of a", "bbbbbb": "key of b"}}
    page = view.open("/server")
    page.route("**/v1/info", lambda route: route.fulfill(json=info))
    page.reload()
    page.get_by_role("heading", name="Templates").wait_for()
    assert page.get_by_role("row").filter(has_text="bbbbbb").get_by_text("key of b").count() == 1
    shared = "{ id, info: { last_seq: 0 }, listeners: new Set(), turns: new Set() }"
    show = f"async (id) => (await import('/console/log.js')).logTab(document.getElementById('main'), {shared})"
    page.evaluate(f"async (id) => {{ await ({show})(id); }}", "s_bbbbbb0123456789abcdef")
    wait_for(lambda: page.get_by_label("Public key").input_value() == "key of b", what="the key")
