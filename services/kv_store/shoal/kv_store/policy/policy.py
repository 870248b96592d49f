"""What a tier asks of a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

IsEvictable = Callable[[bytes], bool]
"""The caller's filter: False for a block that is pinned, leased or being read. It must not call the policy."""


class Policy(Protocol):
    """Orders the blocks of one tier, or of one tenant in it, by worth. Keys have 16 bytes.

    Prefix-closed: a block is no victim while a block that was inserted with it as `parent` is there. Callers may touch
    the blocks of a chain in any order. Every call is O(1), amortised. Belongs to one thread.
    """

    def __len__(self) -> int:
        """Blocks held."""

    def __contains__(self, key: object) -> bool:
        """Whether a block is held."""

    def touch(self, key: bytes) -> None:
        """A block was used; unknown ones are ignored."""

    def touch_all(self, keys: Iterable[bytes]) -> None:
        """`touch` of each, for less."""

    def admit(self, key: bytes, size: int, cost: float) -> bool:
        """Whether a block is worth the room that it takes. Asked before it is written; nothing is inserted.

        Learns from every use, so blocks that follow a refused one are asked for too, though they cannot be inserted.
        size: bytes. cost: seconds to compute it again with its prefix there; 0 if unknown.
        """

    def insert(self, key: bytes, size: int, cost: float, parent: bytes | None) -> None:
        """A block came in, which counts as a use; nothing happens when it is held. Asking `admit` first is not needed.

        parent: the block that it follows; one that is not held counts as none. Leaving chains to `is_evictable` alone
        works, but badly: every block on the way to a leaf is asked for and held back (hits fell by half in a replay).
        """

    def remove(self, key: bytes) -> None:
        """A block went for another reason than room; unknown ones are ignored. Its children need not be gone."""

    def victim(self, is_evictable: IsEvictable) -> bytes | None:
        """The block to give up for room, which is forgotten at once; None when no leaf is evictable."""
