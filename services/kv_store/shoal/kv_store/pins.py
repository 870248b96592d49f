"""Pins: blocks that owners want to stay in memory for a while, a system prompt for example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from shoal.kv_store.counters import Counters
from shoal.kv_store.index import BlockIndex
from shoal.kv_store.scopes import Scope, Scopes

MAX_OWNERS: Final = 65_535
"""Of one block: the index counts them in 16 bits."""


class Pins:
    """Who pinned what, until when. A pinned block leaves memory only when its bytes are wrong. One thread's.

    A tenant's pins are bounded in bytes, counted once for each owner, so that what is left can still be used. Pins do
    not survive the store.
    """

    def __init__(
        self,
        index: BlockIndex,
        scopes: Scopes,
        counters: Counters,
        most_bytes: Callable[[str], int],
        clock: Callable[[], float],
    ) -> None:
        """most_bytes: that a tenant may pin."""
        self._index = index
        self._scopes = scopes
        self._counters = counters
        self._most_bytes = most_bytes
        self._clock = clock
        self._owned: dict[tuple[int, str], dict[bytes, float]] = {}
        """Scope and owner: until when each key is pinned."""
        self._bytes: dict[str, int] = {}

    def bytes_of(self, tenant: str) -> int:
        """Pinned by a tenant's owners; by all for an empty name."""
        return self._bytes.get(tenant, 0) if tenant else sum(list(self._bytes.values()))

    def pin(self, scope: Scope, owner: str, keys: Sequence[bytes], rows: Sequence[int], ttl_s: float) -> int:
        """Pins leading blocks, which are in memory; how many there was room for. Moves the end of those pinned."""
        owned = self._owned.setdefault((scope.number, owner), {})
        until_s, num_pinned = self._clock() + ttl_s, 0
        for key, row in zip(keys, rows, strict=False):
            if key not in owned:
                pinned = self._bytes.get(scope.tenant, 0) + scope.pool.slot_bytes
                if pinned > self._most_bytes(scope.tenant) or self._index.num_pins[row] == MAX_OWNERS:
                    self._counters.add("refused_pins")
                    break
                self._bytes[scope.tenant] = pinned
                self._index.num_pins[row] += 1
            owned[key] = until_s
            num_pinned += 1
        if not owned:
            del self._owned[scope.number, owner]
        return num_pinned

    def unpin(self, scope: Scope, owner: str, keys: Sequence[bytes]) -> int:
        """Ends an owner's pins, of every block without keys; how many there were."""
        owned = self._owned.get((scope.number, owner))
        if owned is None:
            return 0
        held = [key for key in keys if key in owned] if keys else list(owned)
        return self._end(scope, owner, dict.fromkeys(held))

    def expire(self) -> None:
        """Ends pins that are over their time."""
        now_s = self._clock()
        for (number, owner), owned in list(self._owned.items()):
            late = [key for key, until_s in owned.items() if until_s <= now_s]
            self._counters.add("pins_expired", self._end(self._scopes.numbered(number), owner, late))

    def forget(self, row: int) -> None:
        """The block goes whoever pinned it: its bytes are wrong."""
        key, scope = self._index.key(row), self._scopes.numbered(self._index.scope[row])
        for number, owner in list(self._owned):
            if self._index.num_pins[row] and number == scope.number and key in self._owned[number, owner]:
                self._end(scope, owner, [key])

    def _end(self, scope: Scope, owner: str, keys: Iterable[bytes]) -> int:
        owned, num_ended = self._owned[scope.number, owner], 0
        for key in keys:
            del owned[key]
            self._index.num_pins[self._index.find(key)] -= 1
            self._bytes[scope.tenant] -= scope.pool.slot_bytes
            num_ended += 1
        if not owned:
            del self._owned[scope.number, owner]
        return num_ended
