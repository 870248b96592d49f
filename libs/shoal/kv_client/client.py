"""The client: get, view and put, none of which fails because of the store."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import join_keys
from shoal.checksum import Buffer, copy_crc32c_at, crc32c_at
from shoal.kv_client.frames import Method
from shoal.kv_client.lease import Lease, Place, Reading
from shoal.kv_client.link import Link, LinkBroken, Refused
from shoal.kv_client.options import KvClientOptions
from shoal.kv_client.origin import NOBODY, Origin
from shoal.kv_client.roots import bucket_of
from shoal.kv_client.writes import PRESENT, RESERVED, PutResult, Reserved, Status

ROOTS_COUNT_S: Final = 1.0
"""How long after an answer of the store it is believed what its chains begin with."""
_T = TypeVar("_T")


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


class KvClient:
    """One session with the store, opened on first use and again after a failure. Threads take turns."""

    def __init__(self, options: KvClientOptions) -> None:
        """Does not connect."""
        self.options = options
        self.problem = ""
        """Why the store is of no use right now; empty while it is."""
        self.counters: Counter[str] = Counter()
        """breaks, refusals, stale_blocks, corrupt_blocks, skipped_calls."""
        self._link: Link | None = None
        self._lock = threading.Lock()
        self._backoff_s = options.min_backoff_s
        self._retry_at_s = 0.0
        self._answered_s = float("-inf")

    def may_begin(self, key: bytes) -> bool:
        """Whether the store may have a chain that begins with a key. Asks nobody, and may be called by any thread.

        What is known of a store that does not answer any more stays as it was, so it counts for a while only.
        """
        link = self._link
        roots = None if link is None else link.roots
        if roots is None or time.monotonic() - self._answered_s > ROOTS_COUNT_S:
            return True
        return roots[bucket_of(key)] > 0

    def lookup(self, keys: Sequence[bytes], *, origin: Origin = NOBODY) -> Prefix:
        """How many leading blocks the store has; nothing when it is away. origin: for traces."""

        def ask(link: Link) -> Prefix:
            asked = join_keys(keys[: link.session.max_batch_size])
            request = pb.LookupRequest(keys=asked, origin=_told(origin))
            found = link.call(Method.LOOKUP, request, pb.LookupResponse)
            return Prefix(min(found.num_visible, len(keys)), min(found.num_in_memory, len(keys)))

        return self._try(ask, Prefix(0, 0))

    def locate(
        self,
        keys: Sequence[bytes],
        peers_timeout_s: float,
        *,
        leading: Sequence[bytes] = (),
        origin: Origin = NOBODY,
    ) -> Located:
        """`lookup` that also asks other stores for what this one lacks, for so long at most.

        leading: keys from the chain's first one to the one before `keys`: they say which stores to ask.
        """

        def ask(link: Link) -> Located:
            asked = join_keys(keys[: link.session.max_batch_size])
            request = pb.LookupRequest(
                keys=asked,
                peers_timeout_ms=math.ceil(1000 * peers_timeout_s),
                leading_keys=join_keys(leading),
                origin=_told(origin),
            )
            found = link.call(Method.LOOKUP, request, pb.LookupResponse, peers_timeout_s + link.timeout_s)
            nums = (found.num_visible, found.num_in_memory, max(found.num_visible, found.num_with_peers))
            visible, in_memory, with_peers = (min(num, len(keys)) for num in nums)
            return Located(visible, in_memory, with_peers, found.asked_peers)

        return self._try(ask, Located(0, 0, 0))

    def get(self, keys: Sequence[bytes], into: Sequence[Buffer]) -> int:
        """Copies leading blocks into writable buffers of `block_bytes`, one a key; how many are there and verified.

        Later buffers may have been written to. Raises ValueError for buffers of another number or size.
        """
        arrays = [np.frombuffer(buffer, np.uint8) for buffer in into]
        if any(array.nbytes != self.options.block_bytes or not array.flags.writeable for array in arrays):
            raise ValueError(f"give writable buffers of {self.options.block_bytes} bytes")
        return self.get_at(keys, [array.ctypes.data for array in arrays])

    def get_at(self, keys: Sequence[bytes], addresses: Sequence[int]) -> int:
        """`get` into memory that the caller keeps alive: one address a key, with room for `block_bytes`."""
        if len(keys) != len(addresses):
            raise ValueError(f"{len(addresses)} places for {len(keys)} blocks")
        with self.view(keys) as lease:
            for position in range(len(lease)):
                reading = lease.copy(position, addresses[position])
                if reading is not Reading.VERIFIED:
                    self.counters[f"{reading.value}_blocks"] += 1
                    return position
            return len(lease)

    def view(self, keys: Sequence[bytes], *, origin: Origin = NOBODY) -> Lease:
        """Leases on the leading blocks in memory, to be closed; an empty one when the store is away."""

        def ask(link: Link) -> Lease:
            asked = list(keys[: link.session.max_batch_size])
            request = pb.AcquireRequest(keys=join_keys(asked), origin=_told(origin))
            found = link.call(Method.ACQUIRE, request, pb.AcquireResponse)
            if found.retired_chunks:
                link.unmap(list(found.retired_chunks))
                link.post(Method.RELEASE, pb.ReleaseRequest(unmapped_chunks=found.retired_chunks))
            chunks = {number: link.chunk(number) for number in set(found.chunks)}
            places = [
                Place(chunks[number], slot, generation, checksum)
                for number, slot, generation, checksum in zip(
                    found.chunks, found.slots, found.generations, found.checksums, strict=True
                )
            ]
            if len(places) > len(asked) or any(slot >= chunk.num_slots for chunk, slot, _, _ in places):
                raise LinkBroken("the store named blocks that cannot be")
            leased = asked[: len(places)]
            return Lease(leased, places, found.num_visible, link.block_bytes, lambda held: self._give_back(link, held))

        return self._try(ask, Lease((), (), 0, self.options.block_bytes, lambda _: None))

    def put(
        self,
        keys: Sequence[bytes],
        payloads: Sequence[Buffer],
        *,
        parent_key: bytes,
        namespace_key: bytes,
        cost_s: float = 0.0,
    ) -> PutResult:
        """Stores blocks of one chain, the first of which follows `parent_key`; those that are there stay as they are.

        cost_s: what computing a block again takes. Raises ValueError for payloads of another number or size.
        """
        arrays = [np.frombuffer(payload, np.uint8) for payload in payloads]
        if len(arrays) != len(keys) or any(array.nbytes != self.options.block_bytes for array in arrays):
            raise ValueError(f"give a payload of {self.options.block_bytes} bytes for each of {len(keys)} keys")
        num_stored = num_visible = 0
        while num_visible < len(keys):
            rest = keys[num_visible:]
            reserved = self.reserve(rest, parent_key=parent_key, namespace_key=namespace_key, cost_s=cost_s)
            if reserved is None:
                return PutResult(num_stored, num_visible, self.problem or "no room")
            checksums = {
                position: copy_crc32c_at(address, arrays[num_visible + position].ctypes.data, self.options.block_bytes)
                for position, address in reserved.addresses.items()
            }
            statuses = self.commit(reserved, checksums)
            num_stored += sum(statuses[position] == PRESENT for position in checksums)
            done = next((at for at, status in enumerate(statuses) if status != PRESENT), len(statuses))
            num_visible += done
            if done < len(statuses) and (not done or not checksums):
                return PutResult(num_stored, num_visible, self.problem or pb.BlockStatus.Name(statuses[done]))
            parent_key = keys[num_visible - 1]
        return PutResult(num_stored, num_visible)

    def reserve(
        self, keys: Sequence[bytes], *, parent_key: bytes, namespace_key: bytes, cost_s: float = 0.0
    ) -> Reserved | None:
        """Staging memory for the blocks that are missing, as many as there is room for; None when there is none.

        The caller writes payloads to the addresses, and then calls `commit` or `abandon`.
        """

        def ask(link: Link) -> Reserved:
            asked = list(keys[: link.session.max_batch_size])
            request = pb.ReserveRequest(
                keys=join_keys(asked), parent_key=parent_key, namespace_key=namespace_key, cost_s=cost_s
            )
            found = link.call(Method.RESERVE, request, pb.ReserveResponse)
            reserved = [at for at, status in enumerate(found.statuses) if status == RESERVED]
            blocks = list(found.staging_blocks)
            if len(found.statuses) != len(asked) or len(reserved) != len(blocks):
                raise LinkBroken("the store answered for other blocks than those asked for")
            if link.staging is None or (blocks and max(blocks) >= link.num_staging_blocks):
                raise LinkBroken("the store named staging memory that is not there")
            start, stride = link.staging.address, link.session.staging_stride
            addresses = {at: start + stride * block for at, block in zip(reserved, blocks, strict=True)}
            return Reserved(asked, list(found.statuses), link, link.staging, addresses)

        return self._try(ask, None)

    def commit(self, reserved: Reserved, checksums: dict[int, int] | None = None) -> list[Status]:
        """What became of each key of `reserved`, whose payloads lie in staging memory. The store verifies them.

        checksums: CRC32C of each payload, by position; None lets this call compute them from staging memory.
        """
        statuses = list(reserved.statuses)
        positions = list(reserved.addresses)
        if not positions:
            return statuses
        for position in positions:
            statuses[position] = pb.BLOCK_STATUS_EXPIRED
        if checksums is None:
            size = self.options.block_bytes
            checksums = {at: crc32c_at(address, size) for at, address in reserved.addresses.items()}
        request = pb.CommitRequest(
            keys=join_keys([reserved.keys[position] for position in positions]),
            checksums=[checksums[position] for position in positions],
        )

        def ask(link: Link) -> pb.CommitResponse:
            if link is not reserved.link:
                raise Refused(0, "the store was lost between reserving and committing")
            return link.call(Method.COMMIT, request, pb.CommitResponse)

        answer = self._try(ask, None)
        if answer is not None and len(answer.statuses) == len(positions):
            for position, status in zip(positions, answer.statuses, strict=True):
                statuses[position] = status
        return statuses

    def abandon(self, reserved: Reserved) -> None:
        """Gives reservations back without writing."""
        keys = [reserved.keys[position] for position in reserved.addresses]
        request = pb.ReleaseRequest(reserved_keys=join_keys(keys))
        self._try(lambda link: link.post(Method.RELEASE, request) if link is reserved.link else None, None)

    def prefetch(
        self,
        keys: Sequence[bytes],
        timeout_s: float | None = None,
        *,
        leading: Sequence[bytes] = (),
        origin: Origin = NOBODY,
    ) -> int:
        """Leading blocks that are in memory once the store has brought there what it can within the time.

        leading: see `locate`.
        """

        def ask(link: Link) -> int:
            wait_s = link.timeout_s if timeout_s is None else timeout_s
            asked = join_keys(keys[: link.session.max_batch_size])
            timeout_ms = max(1, int(1000 * wait_s))
            request = pb.PrefetchRequest(
                keys=asked, timeout_ms=timeout_ms, leading_keys=join_keys(leading), origin=_told(origin)
            )
            # The store answers in `wait_s`; one that takes longer by a whole timeout is in trouble.
            return link.call(Method.PREFETCH, request, pb.PrefetchResponse, wait_s + link.timeout_s).num_in_memory

        return self._try(ask, 0)

    def evict(self, keys: Sequence[bytes]) -> int:
        """Removes blocks and all that follow them; how many went."""
        request = pb.EvictRequest(keys=join_keys(keys))
        return self._try(lambda link: link.call(Method.EVICT, request, pb.EvictResponse).num_evicted, 0)

    def close(self) -> None:
        """Ends the session, and with it every lease and reservation."""
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None

    def _give_back(self, link: Link, lease: Lease) -> None:
        suspects = [lease.keys[position] for position in lease.suspects]
        request = pb.ReleaseRequest(leased_keys=join_keys(lease.keys), suspect_keys=join_keys(suspects))
        # Leases of a link that broke are gone with it.
        self._try(lambda current: link.post(Method.RELEASE, request) if current is link else None, None)

    def _try(self, ask: Callable[[Link], _T], otherwise: _T) -> _T:
        """`ask`, or `otherwise` when the store is of no use, which is remembered for a while."""
        with self._lock:
            try:
                link = self._link
                if link is None:
                    if time.monotonic() < self._retry_at_s:
                        self.counters["skipped_calls"] += 1
                        return otherwise
                    link = self._link = Link(self.options)
                result = ask(link)
            except Refused as refusal:
                self.counters["refusals"] += 1
                if self._link is None:
                    self._back_off(str(refusal))
                return otherwise
            except LinkBroken as broken:
                self.counters["breaks"] += 1
                self._back_off(str(broken))
                return otherwise
            self.problem = ""
            self._answered_s = time.monotonic()
            self._backoff_s = self.options.min_backoff_s
            return result

    def _back_off(self, problem: str) -> None:
        self.problem = problem
        if self._link is not None:
            self._link.close()
            self._link = None
        self._retry_at_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self.options.max_backoff_s)


def _told(origin: Origin) -> pb.Origin | None:
    return pb.Origin(request_id=origin.request_id, traceparent=origin.traceparent) if origin != NOBODY else None
