"""Brings blocks from another store into this one's memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final

from shoal.api.kv_store.v1 import kv_peer_pb2
from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import KEY_BYTES, join_keys
from shoal.kv_store.counters import Counters
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.remote.options import MAX_KEYS, RemoteOptions
from shoal.kv_store.remote.peer import Peer, PeerFailed, PeerRefused
from shoal.kv_store.remote.transfer import Received, Transfer
from shoal.kv_store.remote.wire import TICKET_BYTES, binding_of, share_out
from shoal.kv_store.scopes import Scope
from shoal.kv_store.sessions import Session
from shoal.kv_store.writing import CopyJob, Status, Writing

MAX_COST_S: Final = 1e6
PULL_SESSION: Final = b"pull"
"""Name of the sessions that blocks of other stores come in by; those of clients are random and longer."""


class Puller:
    """Pulls one batch at a time. Belongs to the store's thread; payloads arrive in threads of `threads`."""

    def __init__(
        self, memory: MemoryTier, writing: Writing, counters: Counters, threads: Executor, options: RemoteOptions
    ) -> None:
        """threads: as many as there may be transfers."""
        self._memory = memory
        self._writing = writing
        self._counters = counters
        self._threads = threads
        self._options = options
        self._running: dict[tuple[int, bytes], asyncio.Task[int]] = {}

    async def pull(self, peer: Peer, scope: Scope, keys: Sequence[bytes], deadline_s: float) -> int:
        """Leading blocks of a part of a chain that came; 0 also for whatever went wrong. Ends by the deadline.

        What others pull already is waited for. The pull itself goes on, to its deadline, when the caller leaves.
        """
        name = (scope.number, keys[0])
        running = self._running.get(name)
        if running is None:
            running = asyncio.create_task(self._pull(peer, scope, keys, deadline_s))
            self._running[name] = running
            running.add_done_callback(lambda _: self._running.pop(name, None))
        left_s = deadline_s - time.monotonic()
        try:
            return await asyncio.wait_for(asyncio.shield(running), max(left_s, 0.0))
        except TimeoutError:
            return 0

    async def close(self) -> None:
        """Waits for what runs; the peers are closed already, so it does not take long."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _pull(self, peer: Peer, scope: Scope, keys: Sequence[bytes], deadline_s: float) -> int:
        wanted = keys[: max(1, self._options.transfer_bytes // scope.block_bytes)][:MAX_KEYS]
        try:
            granted = await self._ask(peer, scope, wanted, deadline_s)
        except (PeerFailed, PeerRefused):
            self._counters.add("peer_failures")
            return 0
        if granted is None:
            return 0
        session = Session(PULL_SESSION, scope, None)
        job = self._writing.receive(session, wanted[: len(granted.checksums)], granted.parent_key)
        num = len(job.reservations)
        job.checksums = list(granted.checksums[:num])
        for reservation, cost_s in zip(job.reservations, granted.costs_s, strict=False):
            if reservation is not None and 0 <= cost_s < MAX_COST_S:
                reservation.cost_s = cost_s
        statuses: Sequence[Status] = ()
        received = Received(0)
        try:
            if num:
                received = await self._receive(job, granted, wanted, peer, deadline_s)
        finally:  # whatever goes wrong, slots without an owner would never be free again
            statuses = self._writing.finish(job)
        if received.is_corrupt:
            await self._report(peer, scope, wanted[received.num_verified])
        num_pulled = sum(status == pb.BLOCK_STATUS_PRESENT for status in statuses)
        self._counters.add("peer_pulled", num_pulled)
        peer.num_pulled += num_pulled
        return num_pulled

    async def _ask(
        self, peer: Peer, scope: Scope, keys: Sequence[bytes], deadline_s: float
    ) -> kv_peer_pb2.GrantResponse | None:
        """A ticket that makes sense. Raises PeerFailed, PeerRefused."""
        left_s, num_bytes = deadline_s - time.monotonic(), len(keys) * scope.block_bytes
        request = kv_peer_pb2.GrantRequest(
            scope=pb.Scope(tenant=scope.tenant, fingerprint=scope.fingerprint),
            keys=join_keys(keys),
            timeout_ms=max(0, int(500 * left_s)),  # the other half is for the transfer
            num_tickets=max(1, min(self._options.num_streams, num_bytes // self._options.stripe_bytes)),
        )
        granted = await peer.call("Grant", request, kv_peer_pb2.GrantResponse, left_s)
        num = len(granted.checksums)
        if not num:
            return None
        tickets_fit = 0 < len(granted.tickets) <= min(num, request.num_tickets)
        tickets_fit = tickets_fit and all(len(ticket) == TICKET_BYTES for ticket in granted.tickets)
        sizes_fit = tickets_fit and len(granted.parent_key) in (0, KEY_BYTES)
        if num > len(keys) or granted.block_bytes != scope.block_bytes or granted.data_port > 65535 or not sizes_fit:
            peer.breaker.failed("it granted other blocks than those asked for")
            raise PeerFailed("it granted other blocks than those asked for")
        return granted

    async def _receive(
        self, job: CopyJob, granted: kv_peer_pb2.GrantResponse, keys: Sequence[bytes], peer: Peer, deadline_s: float
    ) -> Received:
        """Fills `job.copied`. Slots are nobody else's until the threads are through with them, so it waits for all."""
        scope, loop = job.session.scope, asyncio.get_running_loop()
        until_s = min(deadline_s, time.monotonic() + granted.expires_ms / 1000)
        connect = partial(peer.connect, granted.data_port, until_s)
        views = [self._memory.arena.view(each.slot, job.num_bytes) for each in job.reservations if each is not None]
        runs: list[asyncio.Future[Received]] = []
        parts = share_out(len(granted.checksums), len(granted.tickets))
        try:
            for ticket, part in zip(granted.tickets, parts, strict=True):
                binding = binding_of(scope.tenant, scope.fingerprint, keys[part.start : part.stop])
                targets, checksums = views[part.start : part.stop], job.checksums[part.start : part.stop]
                if targets:
                    transfer = Transfer(ticket, binding, targets, checksums, until_s)
                    runs.append(loop.run_in_executor(self._threads, transfer.run, connect))
        finally:
            if runs:
                await asyncio.wait(runs)
        received = _joined([run.result() for run in runs], parts)
        job.copied.extend(job.checksums[: received.num_verified])
        if received.is_corrupt:
            self._counters.add("checksum_failures_peer")
        if received.problem:
            self._counters.add("peer_transfers_failed")
            peer.breaker.failed(received.problem)
        return received

    async def _report(self, peer: Peer, scope: Scope, key: bytes) -> None:
        """Its owner has to know that a block may be wrong: others ask for it as well."""
        named = pb.Scope(tenant=scope.tenant, fingerprint=scope.fingerprint)
        request = kv_peer_pb2.SuspectRequest(scope=named, keys=key)
        with contextlib.suppress(PeerFailed, PeerRefused):
            await peer.call("Suspect", request, kv_peer_pb2.SuspectResponse, self._options.call_timeout_s)


def _joined(received: Sequence[Received], parts: Sequence[range]) -> Received:
    """What several transfers came to: blocks after one that is missing are of no use."""
    num_verified = 0
    for each, part in zip(received, parts, strict=False):
        num_verified += each.num_verified
        if each.problem or each.num_verified < len(part):
            return Received(num_verified, each.is_corrupt, each.problem)
    return Received(num_verified)
