"""Which KV blocks are in use, and which one to reuse next."""

from __future__ import annotations


class BlockPool:
    """Reference counts over `num_blocks` block ids and a least-recently-used list of those nobody holds.

    The free list is doubly linked through two flat int lists, with id `num_blocks` as its sentinel, so that taking the
    oldest block, giving one back, and pulling one out of the middle (a prefix hit on a free block) are all O(1).
    Used by KVCacheManager only; not thread-safe.
    """

    __slots__ = ("_next", "_num_free", "_previous", "_refs", "num_blocks", "num_taken")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; it must be at least 1")
        self.num_blocks = num_blocks
        self._refs: list[int] = [0] * num_blocks
        self._num_free = num_blocks
        self.num_taken = 0
        """Free blocks that were taken so far, also those that came back since."""
        self._next: list[int] = [*range(1, num_blocks + 1), 0]
        self._previous: list[int] = [num_blocks, *range(num_blocks)]

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds; some of them may still be found through the prefix index."""
        return self._num_free

    def refs(self, block_id: int) -> int:
        """How many block tables hold the block."""
        return self._refs[block_id]

    def acquire(self) -> int:
        """Takes the free block that is to be reused first, with one reference. IndexError when none is free."""
        if self._num_free == 0:
            raise IndexError("no free KV block")
        block_id = self._next[self.num_blocks]
        self._unlink(block_id)
        self._refs[block_id] = 1
        return block_id

    def share(self, block_id: int) -> None:
        """Adds a reference; a free block leaves the free list."""
        if self._refs[block_id] == 0:
            self._unlink(block_id)
        self._refs[block_id] += 1

    def release(self, block_id: int, *, reuse_last: bool) -> None:
        """Drops a reference. A block that becomes free is reused last if it may be hit again, else first."""
        refs = self._refs[block_id] - 1
        if refs < 0:
            raise ValueError(f"KV block {block_id} was released more often than it was taken")
        self._refs[block_id] = refs
        if refs == 0:
            sentinel = self.num_blocks
            self._link(block_id, self._previous[sentinel] if reuse_last else sentinel)

    def next_free_ids(self, limit: int) -> list[int]:
        """At most `limit` free blocks, the one to be reused first at the front. O(limit)."""
        ids: list[int] = []
        block_id = self._next[self.num_blocks]
        while block_id != self.num_blocks and len(ids) < limit:
            ids.append(block_id)
            block_id = self._next[block_id]
        return ids

    def free_ids(self) -> list[int]:
        """The free blocks in order of reuse. O(free blocks): for tests and debugging."""
        return self.next_free_ids(self.num_blocks)

    def _link(self, block_id: int, after: int) -> None:
        following = self._next[after]
        self._next[after] = block_id
        self._previous[block_id] = after
        self._next[block_id] = following
        self._previous[following] = block_id
        self._num_free += 1

    def _unlink(self, block_id: int) -> None:
        before, after = self._previous[block_id], self._next[block_id]
        self._next[before] = after
        self._previous[after] = before
        self._num_free -= 1
        self.num_taken += 1
