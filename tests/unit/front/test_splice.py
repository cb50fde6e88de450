"""WebSockets of one session through a front."""

from __future__ import annotations

import json
from typing import Any

import pytest
import websockets
from fleet import Fleet

from kernelsvc.front import splice
from kernelsvc.model.cluster import ids


def channels(fleet: Fleet, session: str, token: str = "alice-token") -> Any:
    url = fleet.url.replace("http", "ws") + f"/t/{token}/api/kernels/{ids.kernel_id(session)}/channels"
    return websockets.connect(url, max_size=None)


def execute(code: str) -> str:
    header = {"msg_id": "m", "msg_type": "execute_request", "session": "c", "username": "u", "version": "5.3"}
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    return json.dumps(
        {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
    )


async def test_jupyters_channels_run_cells_on_each_node(fleet: Fleet) -> None:
    for session in await fleet.on_each():
        async with channels(fleet, session["id"]) as socket:
            await socket.send(execute("print('y' * 300_000)"))
            seen = []
            while "execute_reply" not in seen or "stream" not in seen:
                seen.append(json.loads(await socket.recv())["msg_type"])


async def test_the_client_notices_that_the_node_ends_and_the_node_that_the_client_ends(fleet: Fleet) -> None:
    assert splice.splice.__module__ == "kernelsvc.front.splice"
    _, session = await fleet.on_each()
    async with channels(fleet, session["id"]) as socket:
        await fleet.nodes[1].leave()
        await socket.wait_closed()


@pytest.mark.parametrize("token", ["wrong", "bob-token"])
async def test_channels_need_the_owners_token(fleet: Fleet, token: str) -> None:
    _, session = await fleet.on_each()
    with pytest.raises(websockets.InvalidStatus):
        await channels(fleet, session["id"], token).__aenter__()
