"""E2B's asynchronous Python SDK: many at once, callbacks that wait, what is dropped and found again."""

import asyncio
import json
import os
import sys
import urllib.request

os.environ.update(E2B_API_URL=sys.argv[1], E2B_SANDBOX_URL=sys.argv[1], E2B_API_KEY=sys.argv[2])

import pytest
from e2b import TimeoutException
from e2b_code_interpreter import AsyncSandbox


async def many():
    boxes = await asyncio.gather(*(AsyncSandbox.create(timeout=120) for _ in range(5)))
    found = await asyncio.gather(*(box.run_code(f"x = {n}; x * x") for n, box in enumerate(boxes)))
    assert [each.text for each in found] == ["0", "1", "4", "9", "16"]
    paginator = AsyncSandbox.list(limit=2)
    seen = []
    while paginator.has_next:
        seen += [each.sandbox_id for each in await paginator.next_items()]
    assert {box.sandbox_id for box in boxes} <= set(seen)
    assert len(seen) == len(set(seen))
    assert all(await asyncio.gather(*(box.kill() for box in boxes)))


async def one():
    async with await AsyncSandbox.create(timeout=120) as box:
        seen = []

        async def hear(message):
            await asyncio.sleep(0)
            seen.append(message.line)

        code = "import time\nfor i in range(3):\n    print(i)\n    time.sleep(0.05)"
        await box.run_code(code, on_stdout=hear)
        assert seen == ["0\n", "1\n", "2\n"], seen
        execution = await box.run_code("import matplotlib.pyplot as plt; plt.scatter([1, 2], [3, 4]); plt.show()")
        assert [point for element in execution.results[0].chart.elements for point in element.points] == [
            (1, 3),
            (2, 4),
        ]
        assert (await box.run_code("raise ValueError('x')")).error.value == "x"
        context = await box.create_code_context()
        both = await asyncio.gather(
            box.run_code("import time; time.sleep(0.5); 'default'"), box.run_code("'other'", context=context)
        )
        assert [each.text for each in both] == ["default", "other"]
        await box.restart_code_context(context)
        await box.remove_code_context(context)
        assert len(await box.list_code_contexts()) == 1
        with pytest.raises(TimeoutException):
            await box.run_code("n = 0\nwhile True: n += 1", timeout=1)
        assert int((await box.run_code("n")).text) > 0
        await box.pause()
        assert not await box.is_running()
        again = await AsyncSandbox.connect(box.sandbox_id, timeout=120)
        assert int((await again.run_code("n")).text) > 0
        (fork,) = await box.fork(count=1)
        assert int((await fork.run_code("n")).text) > 0
        await fork.kill()
        await recovered(box)


async def recovered(box):
    """What E2B can't do: read what a dropped connection missed, by the cell that the first line named."""
    reader, writer = await asyncio.open_connection(*box.connection_config.api_url.removeprefix("http://").split(":"))
    code = "try:\n    print('before')\n    __import__('time').sleep(30)\nfinally:\n    print('after')"
    body = json.dumps({"code": code})
    head = (
        f"POST /execute HTTP/1.1\r\nHost: localhost\r\nE2b-Sandbox-Id: {box.sandbox_id}\r\nE2b-Sandbox-Port: 49999\r\n"
        f"E2B-Traffic-Access-Token: {box.traffic_access_token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write((head + body).encode())
    cell = None
    while b"before" not in (line := await reader.readline()):
        if line.startswith(b'{"type":"cell"'):
            cell = json.loads(line)
    writer.close()
    assert (await box.run_code("1")).text == "1"
    request = urllib.request.Request(
        f"{sys.argv[1]}/v1/sessions/{cell['session']}/cells/{cell['id']}",
        headers={"Authorization": f"Bearer {sys.argv[2]}"},
    )
    found = json.loads(urllib.request.urlopen(request).read())
    assert found["reason"] == "interrupted", found
    assert found["text"].startswith("before\nafter\n"), found


async def main():
    await asyncio.gather(many(), one())
    print("ok", flush=True)
    os._exit(0)  # of fifteen interpreters that end by themselves one is aborted, with no Python frame left: the SDK's


asyncio.run(main())
