"""Kernel Gateway with ``TCP_NODELAY`` on its WebSocket.

The gateway's Python runs this module. Without the option Nagle's algorithm and delayed acknowledgements add 40 ms to
each cell. The benchmark measures both, so that this delay is not the whole difference.
"""

from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from kernel_gateway import launch_instance

_open = KernelWebsocketHandler.open


async def _open_without_delay(self, *args, **kwargs):
    self.set_nodelay(True)
    return await _open(self, *args, **kwargs)


KernelWebsocketHandler.open = _open_without_delay

if __name__ == "__main__":
    launch_instance()
