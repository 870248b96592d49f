"""A block source whose answers, loads and failures a test decides, over a HistoryRunner's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shoal.kv_client.origin import NOBODY, Origin
from shoal.model_worker.block_source import Retrieval
from shoal.model_worker.step import LayerFeed


@dataclass(eq=False)
class FakeRetrieval:
    """`settle` is what a test calls for the thread that would do it."""

    keys: Sequence[bytes]
    deadline_s: float
    is_settled: bool = False
    is_ended: bool = False
    first: int = 0
    block_ids: Sequence[int] = ()
    num_loaded: int = 0
    by_layer: bool = False
    feed: LayerFeed | None = None

    @property
    def num_loading(self) -> int:
        return len(self.block_ids)


@dataclass
class FakeBlockSource:
    """`block_source.BlockSource`. Holds what was saved, and checks what it is asked to do."""

    kv: NDArray[np.int64]
    wait_s: float = 5.0
    blocks: dict[bytes, NDArray[np.int64]] = field(default_factory=dict)
    open: list[FakeRetrieval] = field(default_factory=list)
    """Not ended, in the order in which they were asked for."""
    num_loaded: int = 0

    def ask(
        self,
        tenant: str,
        namespace_key: bytes,
        keys: Sequence[bytes],
        num_held: int,
        now_s: float,
        origin: Origin = NOBODY,
    ) -> Retrieval | None:
        if num_held == len(keys):
            return None
        retrieval = FakeRetrieval(keys, now_s + self.wait_s)
        self.open.append(retrieval)
        return retrieval

    def advance(self, now_s: float) -> None:
        pass

    def load(
        self, retrieval: Retrieval, first: int, block_ids: Sequence[int], now_s: float, *, by_layer: bool = False
    ) -> int:
        assert isinstance(retrieval, FakeRetrieval)
        assert retrieval in self.open
        assert not retrieval.block_ids
        if not retrieval.is_settled:
            return 0
        num = 0
        while num < len(block_ids) and retrieval.keys[first + num] in self.blocks:
            num += 1
        retrieval.first, retrieval.block_ids, retrieval.by_layer = first, list(block_ids[:num]), by_layer
        retrieval.is_settled, retrieval.deadline_s = False, now_s + self.wait_s
        return num

    def end(self, retrieval: Retrieval, now_s: float) -> int:
        assert isinstance(retrieval, FakeRetrieval)
        self.open.remove(retrieval)
        retrieval.is_ended = True
        self.num_loaded += retrieval.num_loaded
        return retrieval.num_loaded

    def write(self, retrieval: FakeRetrieval, num_blocks: int) -> None:
        """Copies some more of a load's blocks, as a thread would between steps."""
        assert not retrieval.is_ended
        for _ in range(min(num_blocks, len(retrieval.block_ids) - retrieval.num_loaded)):
            at = retrieval.num_loaded
            self.kv[retrieval.block_ids[at]] = self.blocks[retrieval.keys[retrieval.first + at]]
            retrieval.num_loaded += 1
