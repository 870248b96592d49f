"""Where blocks come from that the device does not hold: what the scheduler needs to know of a KV store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal.kv_client.origin import NOBODY, Origin
from shoal.model_worker.step import LayerFeed


class Retrieval(Protocol):
    """The blocks of one sequence that lie elsewhere, from the question whether there are any to their arrival."""

    deadline_s: float
    """On the scheduler's clock: nobody waits for what is under way beyond it."""

    @property
    def is_settled(self) -> bool:
        """Whether what was under way has ended."""

    @property
    def feed(self) -> LayerFeed | None:
        """What a step may wait for layer by layer, once that has begun to flow."""

    @property
    def num_loading(self) -> int:
        """Blocks that are being filled."""


class BlockSource(Protocol):
    """Never fails, and no call of it waits for longer than it takes to copy a block."""

    def ask(
        self,
        tenant: str,
        namespace_key: bytes,
        keys: Sequence[bytes],
        num_held: int,
        now_s: float,
        origin: Origin = NOBODY,
    ) -> Retrieval | None:
        """Begins to find out which blocks after the `num_held` leading `keys` there are; None: nobody need wait.

        origin: for traces.
        """

    def advance(self, now_s: float) -> None:
        """Takes in answers that came. Called once a step."""

    def load(
        self, retrieval: Retrieval, first: int, block_ids: Sequence[int], now_s: float, *, by_layer: bool = False
    ) -> int:
        """Begins to fill `block_ids`, which hold the keys from `first` on; how many of them, 0 if computing is better.

        by_layer: nobody else computes, so a step may begin before the load has ended; see `Retrieval.feed`.
        What it fills belongs to it until `end`.
        """

    def end(self, retrieval: Retrieval, now_s: float) -> int:
        """Ends whatever is under way, done or not; how many leading blocks of the load hold what they should.

        Nothing is written to any of the blocks afterwards, unless in order with steps that are submitted later.
        """
