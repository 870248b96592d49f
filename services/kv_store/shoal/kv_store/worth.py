"""What blocks on disk are worth, for the log that chooses which to drop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.promoting import Post


class Worth:
    """What the log asks when it has to choose what to drop: see shoal.kv_store.disk.Retention. Called in its thread."""

    def __init__(self, index: BlockIndex, post: Post, recompute_s: float) -> None:
        """recompute_s: what computing a block again takes of which its writer did not say."""
        self._index = index
        self._post = post
        self._recompute_s = recompute_s
        self._tier: DiskTier | None = None

    def belong_to(self, tier: DiskTier) -> None:
        """Whom to tell."""
        self._tier = tier

    def cost_of_losing_s(self, key: bytes) -> float:
        """Nothing for a block that is in memory, or that nothing follows."""
        row = self._index.find(key)
        if not row or self._index.slot[row] != NO_SLOT or not self._index.has_children(row):
            return 0.0
        return self._index.cost_s[row] or self._recompute_s

    def dropped(self, keys: Sequence[bytes]) -> None:
        """Tells the tier."""
        tier = self._tier
        if tier is not None:
            self._post(partial(tier.dropped, list(keys)))
