"""One request's blocks in the store, from the question to the last byte."""

from __future__ import annotations

import enum
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.kv_client.origin import NOBODY, Origin
from shoal.kv_client.pricing import Pending
from shoal.model_worker.kv_offload.layer_feed import LayerFeed


class Stage(enum.Enum):
    """What is under way."""

    ASKED = "asked"
    ANSWERED = "answered"
    """It is known what the store has; the request has not started."""
    LOADING = "loading"
    LOADED = "loaded"
    """... as far as it could be."""


@dataclass(slots=True, eq=False)
class Load:
    """Some blocks on their way to the device. Handed to the reading threads; `lock` guards what they change."""

    first: int
    """Which of the ticket's keys the first block has."""
    block_ids: Sequence[int]
    mark: object
    """See `KvMemory.mark`."""
    pending: Pending
    tier: str
    """The slowest one that is loaded from."""
    start_s: float
    queued_bytes: int
    """Of loads that were under way before it."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while blocks are written to."""
    is_given_up: bool = False
    """Set by the engine's thread, and seen by the reader before it writes on."""
    feed: LayerFeed | None = None
    """By which a step may begin before the load has ended."""
    ended_s: float | None = None
    """When the reader was through with it."""
    num_loaded: int = 0
    """Leading blocks that hold what they should."""
    failure: str = ""
    """Why not all."""


@dataclass(slots=True, eq=False)
class Ticket:
    """See `block_source.Retrieval`. The engine's thread changes it, but for what is said to come from others."""

    tenant: str
    keys: Sequence[bytes]
    """All that may be hit, from the sequence's first block on."""
    num_held: int
    """Leading ones that the device held when it was asked."""
    asked_s: float
    deadline_s: float
    origin: Origin = NOBODY
    """For traces."""
    peers_wait_s: float = 0.0
    """How long the store may ask other stores for it; 0: not at all."""
    stage: Stage = Stage.ASKED
    """ANSWERED and LOADED are written by a reading thread, and by no other."""
    is_over: bool = False
    """Nobody waits for it any more."""
    num_visible: int = 0
    """Leading keys that device and store have together. Written before ANSWERED."""
    num_with_peers: int = 0
    """... with those that another store has. Written before ANSWERED."""
    asked_peers: bool = False
    """Whether other stores were asked. Written before ANSWERED."""
    num_found_in_memory: int = 0
    """... of which the store had these in memory when it was asked. Written before ANSWERED."""
    num_in_memory: int = 0
    """With those that it brought from disk since."""
    answered_s: float = 0.0
    failure: str = ""
    """Why the question came to nothing; empty when it was answered. Written before ANSWERED."""
    load: Load | None = None

    @property
    def is_settled(self) -> bool:
        """See `Retrieval.is_settled`."""
        return self.stage is Stage.ANSWERED or self.stage is Stage.LOADED

    @property
    def feed(self) -> LayerFeed | None:
        """See `Retrieval.feed`."""
        feed = None if self.load is None else self.load.feed
        return feed if feed is not None and feed.is_flowing else None

    @property
    def num_loading(self) -> int:
        """See `Retrieval.num_loading`."""
        return 0 if self.load is None else len(self.load.block_ids)
