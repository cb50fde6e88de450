"""Room for uploads: what a directory may have less what it has, shared by all uploads into it.

The watchdog does not look at a session that is hibernated, and at some others only after a while. So uploads count what
they write until the use of the directory is measured again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelsvc.errors import TooLarge
from kernelsvc.sandbox.disk_use import measure_directory


class UploadRoom:
    """The room of one directory.

    Args:
        limit: Most bytes that it may have. None: no limit.
        directory: Its path.
        used: Bytes that it has.

    Attributes:
        measured: The use that the watchdog measured last, or None.
        users: Number of uploads under way.
    """

    def __init__(self, limit: int | None, directory: str, used: int, measured: int | None) -> None:
        self.measured, self.users = measured, 0
        self._limit, self._directory, self._used = limit, directory, used

    def renew(self, measured: int | None) -> None:
        """Take a new measurement of the watchdog, which has the bytes of the uploads under way."""
        if measured is not None and measured != self.measured:
            self.measured = self._used = measured

    def add_user(self) -> None:
        """Count an upload that begins."""
        self.users += 1

    def remove_user(self) -> bool:
        """Count an upload that has ended. Return whether the room can be forgotten, since the next one measures it."""
        self.users -= 1
        return not self.users and self.measured is None

    async def take(self, size: int) -> None:
        """Count bytes that are about to be written. Safe to cancel.

        Raises:
            TooLarge: The directory has no room for them.
        """
        if self._limit is not None and self._used + size > self._limit:
            # Files may have been removed.
            self._used = (await asyncio.to_thread(measure_directory, self._directory)).bytes
            if self._used + size > self._limit:
                raise TooLarge(
                    f"The directory may have {self._limit} bytes and has {self._used}. Delete some of its files.",
                    size=size,
                    bound=max(0, self._limit - self._used),
                )
        self._used += size

    def give_back(self, size: int) -> None:
        """Stop counting bytes that were removed."""
        self._used = max(0, self._used - size)


class UploadRooms:
    """The rooms of all directories, by the id of the session or the address of the workspace.

    Args:
        exists: Returns whether there is still a directory of that name.
    """

    def __init__(self, exists: Callable[[str], bool]) -> None:
        self._rooms: dict[str, UploadRoom] = {}
        self._exists = exists

    async def enter(self, name: str, limit: int | None, directory: str, measured: int | None) -> UploadRoom:
        """Return the room of a directory for one more upload. The caller calls ``leave``. Safe to cancel.

        Args:
            name: See the class.
            limit: Most bytes of the directory.
            directory: Its path.
            measured: Its use by the watchdog's last measurement. None: it is measured here.
        """
        if name not in self._rooms:
            used = measured or 0
            if measured is None and limit is not None:
                used = (await asyncio.to_thread(measure_directory, directory)).bytes
            for gone in [each for each, room in self._rooms.items() if not room.users and not self._exists(each)]:
                del self._rooms[gone]
            self._rooms.setdefault(name, UploadRoom(limit, directory, used, measured))
        room = self._rooms[name]
        room.renew(measured)
        room.add_user()
        return room

    def leave(self, name: str, room: UploadRoom) -> None:
        """End an upload."""
        if room.remove_user():
            self._rooms.pop(name, None)
