"""``kernelsvc token`` beside a running server: clients come and go while sessions and cells continue."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import HTTPError

import pytest
from command_line import kernelsvc
from served import Served
from waiting import wait_for

from kernelsvc import Client
from kernelsvc.errors import QuotaExceeded, Unauthenticated


def tokens(served: Served, *words: str) -> str:
    return kernelsvc("token", *words, "--data-dir", str(served.data_dir), env=served.env)[0].strip()


def status(served: Served, method: str, token: str) -> int:
    """Return the status of a request for sessions with this token."""
    try:
        served.call(
            method, "/v1/sessions", {} if method == "POST" else None, headers={"Authorization": f"Bearer {token}"}
        )
    except HTTPError as error:
        with error:
            return error.code
    return 200


def test_two_users_one_rotated_while_a_cell_runs(served: Served) -> None:
    alice = tokens(served, "create", "token-alice", "--max-sessions", "1")
    bob = tokens(served, "create", "token-bob", "--scopes", "read")
    carol = tokens(served, "create", "token-carol", "--max-sessions", "2")
    with Client(served.url, alice) as first, Client(served.url, carol) as other:
        others = other.create_session()
        wait_for_go = "import os, time\nx = 1\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
        others.run(f"{wait_for_go}x + 5", cell="long", wait="queued")
        session = first.create_session()
        cell = session.run(f"{wait_for_go}x + 1", wait="queued")
        with pytest.raises(QuotaExceeded, match="live sessions"):
            first.create_session()
        new = tokens(served, "rotate", "token-alice", "--keep-hours", "0")
        # The connection ends with its token. The session and its cell do not.
        with pytest.raises(Unauthenticated):
            wait_for(lambda: first.session(session.id) and None, what="the refusal of the old token")
        with Client(served.url, new) as second:
            again = second.session(session.id)
            again.upload(b"", "go")
            ended = wait_for(
                lambda: (found := again.cell(cell.id)).state == "finished" and found, what="the cell's end"
            )
            assert ended.text == "2\n"
            assert status(served, "POST", bob) == 403
            again.close()
        # The other user, with a quota of its own, notices nothing.
        with other.create_session(), pytest.raises(QuotaExceeded, match="live sessions"):
            other.create_session()
        others.upload(b"", "go")
        wait_for(lambda: others.cell("long").text == "6\n", what="the end of the other user's cell")
        others.close()
    tokens(served, "revoke", "token-alice")
    tokens(served, "revoke", "token-bob")
    tokens(served, "revoke", "token-carol")
    assert status(served, "GET", new) == 401
    listed = {each["name"] for each in json.loads(tokens(served, "list", "--json"))}
    assert not listed & {"token-alice", "token-bob"}


def test_a_damaged_file_locks_out_no_client(served: Served) -> None:
    token = tokens(served, "create", "token-carol")
    path: Path = served.data_dir / "keys" / "tokens.json"
    content = path.read_bytes()
    assert status(served, "GET", token) == 200
    try:
        path.write_bytes(b"{")
        assert status(served, "GET", token) == 200
        wait_for(lambda: "damaged" in served.output(), what="the cause in the server's log")
    finally:
        path.write_bytes(content)
    tokens(served, "revoke", "token-carol")
    assert status(served, "GET", token) == 401
