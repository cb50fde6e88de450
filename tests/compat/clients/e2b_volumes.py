"""E2B's Python SDK, unmodified: volumes, in both of its forms. Arguments: address, token. Says "ok"."""

import asyncio
import os
import sys

ADDRESS, TOKEN = sys.argv[1:]
os.environ |= {"E2B_API_KEY": TOKEN, "E2B_API_URL": ADDRESS, "E2B_SANDBOX_URL": ADDRESS, "E2B_VOLUME_API_URL": ADDRESS}

from e2b import AsyncVolume, Sandbox, Volume  # noqa: E402
from e2b.exceptions import NotFoundException, VolumeException, VolumeNotFoundException  # noqa: E402


def refused(call, error):
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


def files(volume):
    volume.make_dir("/reports/2026", force=True)
    volume.write_file("/reports/2026/q1.csv", "a,b\n", mode=0o640)
    entry = volume.get_info("/reports/2026/q1.csv")
    assert (entry.size, entry.mode, entry.uid, entry.type.value) == (4, 0o640, 1000, "file"), entry
    refused(lambda: volume.write_file("/reports/2026/q1.csv", "c"), VolumeException)
    volume.write_file("/reports/2026/q1.csv", b"c" * 3_000_000, force=True)
    assert b"".join(volume.read_file("/reports/2026/q1.csv", format="stream")) == b"c" * 3_000_000
    assert [each.path for each in volume.list("/reports")] == ["/reports/2026"]
    assert volume.update_metadata("/reports", mode=0o755).mode == 0o755
    assert "one user" in refused(lambda: volume.update_metadata("/reports", uid=0), VolumeException)
    volume.remove("/reports")
    assert not volume.exists("/reports")
    refused(lambda: volume.list("/reports"), NotFoundException)


def in_sandboxes(volume):
    with Sandbox.create(volume_mounts={"/mnt/data": volume}) as one:
        one.commands.run("echo kept > /mnt/data/notes.txt")
    with Sandbox.create(volume_mounts={"/volume": volume.name}) as two:
        assert two.commands.run("cat /volume/notes.txt").stdout == "kept\n"
        assert two.get_info().volume_mounts == [{"name": volume.name, "path": "/volume"}]
        assert "Close them" in refused(lambda: Volume.destroy(volume.volume_id), VolumeException)
    assert volume.read_file("notes.txt") == "kept\n"


async def asynchronously(volume):
    same = await AsyncVolume.connect(volume.volume_id)
    await same.write_file("/async.txt", "x")
    assert await same.read_file("/async.txt") == "x"


made = Volume.create("compat")
assert Volume.get_info(made.volume_id).name == "compat"
assert "compat" in [each.name for each in Volume.list()]
files(made)
in_sandboxes(made)
asyncio.run(asynchronously(made))
assert Volume.destroy(made.volume_id)
assert not Volume.destroy(made.volume_id)
refused(lambda: Volume.get_info(made.volume_id), VolumeNotFoundException)
print("ok")
