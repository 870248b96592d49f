"""What enters and leaves the prefix cache, in order of happening. Plain structs that cross to the front as they are."""

from __future__ import annotations

import msgspec


class Stored(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Blocks that can be found from here on."""

    keys: tuple[bytes, ...]
    """16-byte block keys; each one's parent is the one before it."""
    parent_key: bytes
    """Parent of the first: another block's key or a namespace key."""


class Removed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Blocks that can no longer be found."""

    keys: tuple[bytes, ...]


class Cleared(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Nothing can be found any more."""


KvEvent = Stored | Removed | Cleared


class EventLog:
    """Collects events until the engine takes them, joining neighbours of one kind so that a step makes few."""

    __slots__ = ("_events", "_removed")

    def __init__(self) -> None:
        self._events: list[KvEvent] = []
        self._removed: list[bytes] = []

    def stored(self, keys: tuple[bytes, ...], parent_key: bytes) -> None:
        """Notes blocks that became findable."""
        self._flush_removed()
        self._events.append(Stored(keys, parent_key))

    def removed(self, key: bytes) -> None:
        """Notes a block that was evicted."""
        self._removed.append(key)

    def cleared(self) -> None:
        """Notes that the index was emptied."""
        self._flush_removed()
        self._events.append(Cleared())

    def take(self) -> list[KvEvent]:
        """Hands over everything noted since the last call."""
        self._flush_removed()
        events, self._events = self._events, []
        return events

    def _flush_removed(self) -> None:
        if self._removed:
            self._events.append(Removed(tuple(self._removed)))
            self._removed = []
