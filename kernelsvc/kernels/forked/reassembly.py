"""Memory for frames that have not arrived whole: one limit over all kernels.

A connection buffers the beginning of a frame until the rest arrives. A kernel that
never sends the rest would keep that memory, 64 MiB for each session. As Linux does for
fragments of IP packets (``ipfrag_high_thresh`` in Documentation/networking/ip-sysctl),
the sum of all beginnings is limited, and the oldest is dropped first: a frame that is
on its way is whole within milliseconds. Pure.
"""

from __future__ import annotations

from typing import Protocol

#: Maximum bytes of incomplete frames of all kernels together: four of the largest frames.
MAX_BYTES = 256 * 1024 * 1024


class PartialFrameOwner(Protocol):
    """The owner of an incomplete frame."""

    def drop_partial(self) -> None:
        """Free the incomplete frame. The kernel still holds all of it and sends it again after a reconnection."""


class Reassembly:
    """The incomplete frames of all connections.

    Args:
        max_bytes: most bytes together.

    Attributes:
        total: bytes held now.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.total = 0
        self._held: dict[PartialFrameOwner, tuple[int, int]] = {}  # frame number and bytes, oldest frame first

    def hold(self, owner: PartialFrameOwner, frame: int, size: int) -> None:
        """Record how much of its incomplete frame an owner holds, and drop the oldest frames over the limit.

        Args:
            owner: the owner. Its ``drop_partial`` may be called before this returns.
            frame: number of the incomplete frame. A later frame is younger.
            size: bytes held. 0 for none.
        """
        before = self._held.get(owner)
        if before is not None:
            self.total -= before[1]
            if before[0] != frame or not size:
                del self._held[owner]
        if size:
            self._held[owner] = frame, size
            self.total += size
        while self.total > self.max_bytes:
            oldest = next(iter(self._held))
            self.release(oldest)
            oldest.drop_partial()

    def release(self, owner: PartialFrameOwner) -> None:
        """Forget an owner, which has freed its buffer."""
        before = self._held.pop(owner, None)
        if before is not None:
            self.total -= before[1]


#: The limit of all kernels of this process.
reassembly = Reassembly()
