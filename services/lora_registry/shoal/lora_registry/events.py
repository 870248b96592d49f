"""What happened to names, numbered without gaps, for those that follow."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.lora_registry.store import AdapterStore, VersionRecord

HEARTBEAT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Event:
    """What a name points to from then on; None: nothing."""

    name: str
    version: int
    record: VersionRecord | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Told at once. `revision`: of the last event so far."""

    revision: int
    is_snapshot: bool
    events: Sequence[Event]


class EventLog:
    """Of one process: its epoch is drawn anew. Used by one event loop alone."""

    def __init__(self, store: AdapterStore, buffer: int, heartbeat_s: float = HEARTBEAT_S) -> None:
        """buffer: events that are kept for those that come back; others get a snapshot."""
        self.epoch = secrets.randbits(63) | 1
        self.revision = 0
        self._store = store
        self._heartbeat_s = heartbeat_s
        self._known: dict[str, Event] = {}
        self._events: deque[Event] = deque(maxlen=buffer)
        self._changed = asyncio.Event()
        self._is_closed = False
        for record in store.names():
            self.note(record.name)

    def note(self, name: str) -> None:
        """The name may have changed. What is told is what is there, so the order of notes makes no difference."""
        event = self._look(name)
        before = self._known.get(name)
        if event == before or (before is None and event.record is None):
            return
        if event.record is None:
            del self._known[name]
        else:
            self._known[name] = event
        self._events.append(event)
        self.revision += 1
        self._wake()

    def close(self) -> None:
        """Ends all that follow."""
        self._is_closed = True
        self._wake()

    async def follow(self, epoch: int, revision: int) -> AsyncGenerator[Batch, None]:
        """From where a follower was, or from a snapshot. An empty batch each heartbeat. Ends with `close`."""
        at: int | None = revision if epoch == self.epoch and revision <= self.revision else None
        while not self._is_closed:
            changed = self._changed
            if at is None or self.revision - at > len(self._events):
                yield Batch(self.revision, True, [self._known[name] for name in sorted(self._known)])
                at = self.revision
            elif at < self.revision:
                events = list(self._events)[at - self.revision :]
                at = self.revision
                yield Batch(at, False, events)
            else:
                try:
                    async with asyncio.timeout(self._heartbeat_s):
                        await changed.wait()
                except TimeoutError:
                    yield Batch(self.revision, False, ())

    def _look(self, name: str) -> Event:
        record = self._store.name(name)
        digest = None if record is None else record.digest
        version = None if digest is None else self._store.version(digest)
        return Event(name, record.current if record is not None and version is not None else 0, version)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
