"""The client: get, view and put, none of which fails because of the store."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import join_keys
from shoal.checksum import Buffer, copy_crc32c_at, crc32c_at
from shoal.kv_client.answers import (
    PRESENT,
    Located,
    Prefix,
    Status,
    check_committed,
    check_granted,
    check_located,
    check_prefetched,
    check_reserved,
    status_name,
)
from shoal.kv_client.failures import LinkBroken, Refused
from shoal.kv_client.frames import Method
from shoal.kv_client.lease import Lease, Place, Reading
from shoal.kv_client.link import Link
from shoal.kv_client.options import KvClientOptions
from shoal.kv_client.origin import NOBODY, Origin
from shoal.kv_client.roots import bucket_of
from shoal.kv_client.writes import PutResult, Reserved

ROOTS_COUNT_S: Final = 1.0
"""How long after an answer of the store it is believed what its chains begin with."""
_T = TypeVar("_T")


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
        self._opened_s = float("-inf")

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
            asked = keys[: link.max_batch_size]
            request = pb.LookupRequest(keys=join_keys(asked), origin=_told(origin))
            found = check_located(link.call(Method.LOOKUP, request, pb.LookupResponse), len(asked))
            return Prefix(found.num_visible, found.num_in_memory)

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
            asked = keys[: link.max_batch_size]
            request = pb.LookupRequest(
                keys=join_keys(asked),
                peers_timeout_ms=math.ceil(1000 * peers_timeout_s),
                leading_keys=join_keys(leading),
                origin=_told(origin),
            )
            found = link.call(Method.LOOKUP, request, pb.LookupResponse, peers_timeout_s + link.timeout_s)
            return check_located(found, len(asked))

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
            asked = list(keys[: link.max_batch_size])
            request = pb.AcquireRequest(keys=join_keys(asked), origin=_told(origin))
            found = link.call(Method.ACQUIRE, request, pb.AcquireResponse)
            granted = check_granted(found, len(asked))
            if found.retired_chunks:
                link.unmap(list(found.retired_chunks))
                link.post(Method.RELEASE, pb.ReleaseRequest(unmapped_chunks=found.retired_chunks))
            try:
                chunks = {number: link.chunk(number) for number in {each.chunk for each in granted}}
            except Refused as refusal:
                raise LinkBroken(f"the store leased blocks of a chunk that it refuses: {refusal}") from refusal
            places = [Place(chunks[each.chunk], each.slot, each.generation, each.checksum) for each in granted]
            if any(slot >= chunk.num_slots for chunk, slot, _, _ in places):
                raise LinkBroken("the store named a slot that is not there")
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
                return PutResult(num_stored, num_visible, self.problem or status_name(statuses[done]))
            parent_key = keys[num_visible - 1]
        return PutResult(num_stored, num_visible)

    def reserve(
        self, keys: Sequence[bytes], *, parent_key: bytes, namespace_key: bytes, cost_s: float = 0.0
    ) -> Reserved | None:
        """Staging memory for the blocks that are missing, as many as there is room for; None when there is none.

        The caller writes payloads to the addresses, and then calls `commit` or `abandon`.
        """

        def ask(link: Link) -> Reserved:
            asked = list(keys[: link.max_batch_size])
            request = pb.ReserveRequest(
                keys=join_keys(asked), parent_key=parent_key, namespace_key=namespace_key, cost_s=cost_s
            )
            found = link.call(Method.RESERVE, request, pb.ReserveResponse)
            blocks = check_reserved(found, len(asked), link.num_staging_blocks)
            if link.staging is None:
                raise LinkBroken("this client does not write")
            start, stride = link.staging.address, link.staging.row_bytes
            addresses = {position: start + stride * block for position, block in blocks.items()}
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

        def ask(link: Link) -> Sequence[Status]:
            if link is not reserved.link:
                raise Refused(0, "the store was lost between reserving and committing")
            return check_committed(link.call(Method.COMMIT, request, pb.CommitResponse), len(positions))

        away: Sequence[Status] = ()
        for position, status in zip(positions, self._try(ask, away), strict=False):
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
            asked = keys[: link.max_batch_size]
            timeout_ms = max(1, int(1000 * wait_s))
            request = pb.PrefetchRequest(
                keys=join_keys(asked), timeout_ms=timeout_ms, leading_keys=join_keys(leading), origin=_told(origin)
            )
            # The store answers in `wait_s`; one that takes longer by a whole timeout is in trouble.
            found = link.call(Method.PREFETCH, request, pb.PrefetchResponse, wait_s + link.timeout_s)
            return check_prefetched(found, len(asked))

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
                    self._opened_s = time.monotonic()
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
            if self._answered_s - self._opened_s >= self._backoff_s:  # or who fails at every second call is asked on
                self._backoff_s = self.options.min_backoff_s
            return result

    def give_up(self, problem: str) -> None:
        """Ends the session and leaves the store alone for a while, as when it failed: for callers whom it failed."""
        with self._lock:
            self._back_off(problem)

    def _back_off(self, problem: str) -> None:
        self.problem = problem
        if self._link is not None:
            self._link.close()
            self._link = None
        self._retry_at_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self.options.max_backoff_s)


def _told(origin: Origin) -> pb.Origin | None:
    return pb.Origin(request_id=origin.request_id, traceparent=origin.traceparent) if origin != NOBODY else None
