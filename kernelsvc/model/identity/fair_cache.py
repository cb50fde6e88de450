"""A cache of entries of several owners, in which no owner evicts what another one with fewer entries has."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FairCache(Generic[K, V]):
    """Entries by key, each with an owner and a size.

    An owner over ``most_of_one`` loses its oldest entries. If all owners are over ``most`` together, the one that has
    most loses its oldest entries.

    Args:
        most_of_one: The most size of one owner.
        most: The most size of all owners together.
    """

    def __init__(self, most_of_one: int, most: int) -> None:
        self._most_of_one, self._most = most_of_one, most
        self._owners: dict[K, str] = {}
        self._entries: dict[str, OrderedDict[K, tuple[V, int]]] = {}
        self._sizes: Counter[str] = Counter()
        self._size = 0

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, key: K) -> bool:
        return key in self._owners

    def get(self, key: K) -> V | None:
        """Return an entry, or None. It stays as old as it was."""
        owner = self._owners.get(key)
        return None if owner is None else self._entries[owner][key][0]

    def of(self, owner: str) -> Iterator[tuple[K, V]]:
        """Yield the keys and entries of an owner, the oldest first."""
        return ((key, value) for key, (value, _) in self._entries.get(owner, {}).items())

    def put(self, owner: str, key: K, value: V, size: int = 1) -> None:
        """Add an entry as the newest one. It replaces an entry with this key."""
        self.pop(key)
        self._owners[key] = owner
        self._entries.setdefault(owner, OrderedDict())[key] = value, size
        self._sizes[owner] += size
        self._size += size
        while self._sizes[owner] > self._most_of_one:
            self._pop_oldest(owner)
        while self._size > self._most:
            self._pop_oldest(max(self._sizes, key=self._sizes.__getitem__))

    def pop(self, key: K) -> V | None:
        """Remove an entry and return it. None if there is none."""
        owner = self._owners.pop(key, None)
        if owner is None:
            return None
        value, size = self._entries[owner].pop(key)
        self._size -= size
        self._sizes[owner] -= size
        if not self._entries[owner]:
            del self._entries[owner], self._sizes[owner]
        return value

    def _pop_oldest(self, owner: str) -> None:
        self.pop(next(iter(self._entries[owner])))
