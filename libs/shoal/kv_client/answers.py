"""What the store answers, checked against what it was asked: nothing else of an answer reaches anybody.

What cannot be is LinkBroken. A store may be newer than its client, so a status that is not known here only means that a
block is not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client.failures import LinkBroken

Status: TypeAlias = pb.BlockStatus.ValueType
PRESENT: Final = pb.BLOCK_STATUS_PRESENT
RESERVED: Final = pb.BLOCK_STATUS_RESERVED
_NAMES: Final = {status: name.removeprefix("BLOCK_STATUS_").lower() for name, status in pb.BlockStatus.items()}


class Prefix(NamedTuple):
    """How much of a chain the store has."""

    num_visible: int
    num_in_memory: int

    @property
    def num_with_peers(self) -> int:
        """See `Located`: nobody else was asked."""
        return self.num_visible

    @property
    def asked_peers(self) -> bool:
        """See `Located`."""
        return False


class Located(NamedTuple):
    """How much of a chain the store has, or can get."""

    num_visible: int
    num_in_memory: int
    num_with_peers: int
    """Leading blocks that it has or another store has; `KvClient.prefetch` brings them."""
    asked_peers: bool = False
    """Whether other stores were asked: it has some, and lacks blocks."""


class Granted(NamedTuple):
    """A leased block."""

    chunk: int
    slot: int
    generation: int
    checksum: int


def status_name(status: Status) -> str:
    """A word for a status, of any number."""
    return _NAMES.get(status, "unknown")


def check_located(found: pb.LookupResponse, num_asked: int) -> Located:
    """Of a Lookup."""
    num_with_peers = max(found.num_visible, found.num_with_peers)
    if not found.num_in_memory <= found.num_visible <= num_with_peers <= num_asked:
        raise LinkBroken("the store has more blocks than it was asked for")
    return Located(found.num_visible, found.num_in_memory, num_with_peers, found.asked_peers)


def check_granted(found: pb.AcquireResponse, num_asked: int) -> list[Granted]:
    """Of an Acquire. Whether a chunk has such a slot is for its mapping to say."""
    fields = (found.chunks, found.slots, found.generations, found.checksums)
    if len({len(field) for field in fields}) != 1:
        raise LinkBroken("the store said of some blocks where they are, and not of others")
    if not len(found.chunks) <= found.num_visible <= num_asked:
        raise LinkBroken("the store leased other blocks than those asked for")
    if any(generation % 2 for generation in found.generations):
        raise LinkBroken("the store leased a block that is not published")
    return [Granted(*each) for each in zip(*fields, strict=True)]


def check_reserved(found: pb.ReserveResponse, num_asked: int, num_staging_blocks: int) -> dict[int, int]:
    """Of a Reserve: staging blocks by position of their key."""
    blocks = found.staging_blocks
    positions = [at for at, status in enumerate(found.statuses) if status == RESERVED]
    if len(found.statuses) != num_asked or len(positions) != len(blocks):
        raise LinkBroken("the store answered for other blocks than those asked for")
    if len(set(blocks)) != len(blocks) or any(block >= num_staging_blocks for block in blocks):
        raise LinkBroken("the store named staging memory that is not there")
    return dict(zip(positions, blocks, strict=True))


def check_committed(found: pb.CommitResponse, num_asked: int) -> Sequence[Status]:
    """Of a Commit: a status a key."""
    if len(found.statuses) != num_asked:
        raise LinkBroken("the store answered for other blocks than those that were written")
    return list(found.statuses)


def check_prefetched(found: pb.PrefetchResponse, num_asked: int) -> int:
    """Of a Prefetch: leading blocks in memory."""
    if found.num_in_memory > num_asked:
        raise LinkBroken("the store brought more blocks than it was asked for")
    return found.num_in_memory
