"""Copies that never listen."""

import asyncio
import socket
import time
from pathlib import Path

import pytest

from kernelsvc.errors import KernelDead
from kernelsvc.kernels.forked import launcher
from kernelsvc.model.exit_status import Cause, Exit


async def test_a_copy_that_ended_with_its_original_is_given_up_early(short_tmp: Path) -> None:
    # A cell that kills its kernel while the copy of the cell before is made: the socket is there, and no listener.
    ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    path = short_tmp / "copy.k"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(str(path))
        asyncio.get_running_loop().call_soon(ended.set_result, Exit(cause=Cause.SIGNALLED, message="", signal=9))
        began = time.monotonic()
        with pytest.raises(KernelDead, match="ended before its copy"):
            await launcher._listener(path, ended)
        assert time.monotonic() - began < launcher.LISTEN_SECONDS / 2
