import asyncio
import os
import socket

from waiting import wait_until

from kernelsvc.linux.systemd import Systemd, ready_fd


def test_a_descriptor_gets_one_line_and_its_end():
    ours, theirs = os.pipe()
    ready_fd(theirs)
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == b"ready\n"
    ready_fd(None)


async def test_systemd_is_told(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.setblocking(False)
        systemd = Systemd({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000"})
        systemd.tell("READY=1", "STATUS=up")
        assert listener.recv(100) == b"READY=1\nSTATUS=up"
        feeding = asyncio.create_task(systemd.feed_watchdog())
        heard: list[bytes] = []

        def twice() -> bool:
            try:
                heard.append(listener.recv(100))
            except BlockingIOError:
                return False
            return heard == [b"WATCHDOG=1"] * 2

        await wait_until(twice)
        feeding.cancel()


async def test_without_systemd_nothing_is_said():
    systemd = Systemd({})
    systemd.tell("READY=1")
    await systemd.feed_watchdog()
