"""What this store answers to others: on the store's thread, on messages whose sender is known to be a peer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final

from shoal.api.kv_store.v1 import kv_peer_pb2
from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import KEY_BYTES
from shoal.kv_store.checking import check_suspects
from shoal.kv_store.index import NO_SLOT
from shoal.kv_store.remote.hotness import Hotness
from shoal.kv_store.remote.options import MAX_KEYS, RemoteOptions
from shoal.kv_store.remote.tickets import Piece, TicketBook
from shoal.kv_store.remote.wire import binding_of, share_out
from shoal.kv_store.scopes import Scope
from shoal.kv_store.store import Leased, Store
from shoal.rpc.errors import InvalidArgument

MAX_DISK_WAIT_S: Final = 5.0
MAX_TICKETS: Final = 8
"""Of one grant."""
MAX_SUSPECTS: Final = 16
"""Of one call: looking at a payload takes a moment of a thread."""
TakeOffer = Callable[[kv_peer_pb2.OfferRequest, Sequence[bytes]], int]
Post = Callable[[Callable[[], object]], None]
"""Runs something on the store's thread, soon. Called from any thread."""


class Answers:
    """Locates and grants. What a peer says of tenants is believed: it authenticated them."""

    def __init__(
        self,
        store: Store,
        book: TicketBook,
        hotness: Hotness,
        options: RemoteOptions,
        post: Post,
        data_port: int,
        take_offer: TakeOffer,
        readers: Executor,
    ) -> None:
        """data_port: 0 when payloads go over gRPC alone. readers: threads that sum payloads."""
        self._store = store
        self._book = book
        self._hotness = hotness
        self._options = options
        self._post = post
        self._data_port = data_port
        self._take_offer = take_offer
        self._readers = readers

    async def locate(self, request: kv_peer_pb2.LocateRequest) -> kv_peer_pb2.LocateResponse:
        """See the proto."""
        keys = _keys(request.keys)
        scope = self._scope(request.scope)
        if scope is None:
            return kv_peer_pb2.LocateResponse()
        num_visible = self._count_visible(scope, keys)
        if num_visible:
            self._hotness.note(scope, keys[:num_visible])
        return kv_peer_pb2.LocateResponse(num_visible=num_visible)

    async def grant(self, request: kv_peer_pb2.GrantRequest) -> kv_peer_pb2.GrantResponse:
        """See the proto."""
        keys = _keys(request.keys)
        scope = self._scope(request.scope)
        if scope is None or not keys:
            return kv_peer_pb2.GrantResponse()
        keys = keys[: max(1, self._options.transfer_bytes // scope.block_bytes)]
        await self._bring_to_memory(scope, keys, min(request.timeout_ms / 1000, MAX_DISK_WAIT_S))
        num = self._count_in_memory(scope, keys)
        if not num:
            return kv_peer_pb2.GrantResponse()
        keys = keys[:num]
        index, parts = self._store.index, share_out(num, min(max(1, request.num_tickets), MAX_TICKETS, num))
        rows = [index.find(key) for key in keys]
        parent = index.parent[rows[0]]
        timeout_s = min(self._options.ticket_timeout_s, self._store.limits.lease_timeout_s)
        return kv_peer_pb2.GrantResponse(
            tickets=[self._issue(scope, keys[part.start : part.stop], timeout_s) for part in parts],
            checksums=[index.checksum[row] for row in rows],
            block_bytes=scope.block_bytes,
            parent_key=index.key(parent) if parent else b"",
            data_port=self._data_port,
            expires_ms=int(1000 * timeout_s),
            costs_s=[index.cost_s[row] for row in rows],
        )

    async def offer(self, request: kv_peer_pb2.OfferRequest) -> kv_peer_pb2.OfferResponse:
        """See the proto."""
        keys = _keys(request.keys)
        self._scope(request.scope)
        return kv_peer_pb2.OfferResponse(num_wanted=self._take_offer(request, keys))

    async def suspect(self, request: kv_peer_pb2.SuspectRequest) -> kv_peer_pb2.SuspectResponse:
        """See the proto."""
        keys = _keys(request.keys)[:MAX_SUSPECTS]
        scope = self._scope(request.scope)
        num = 0 if scope is None else await check_suspects(self._store, self._readers, scope, keys)
        return kv_peer_pb2.SuspectResponse(num_removed=num)

    def _issue(self, scope: Scope, keys: Sequence[bytes], timeout_s: float) -> bytes:
        """A ticket for blocks that are in memory, which are leased until it ends. Raises ResourceExhausted."""
        store = self._store
        session = store.open_ticket_session(scope)
        leased, _ = store.acquire(session, keys)
        fds: dict[int, int] = {}

        def end() -> None:
            for fd in fds.values():
                os.close(fd)
            self._post(partial(store.close_session, session))

        try:
            pieces = [self._piece(lease, scope, fds) for lease in leased]
            binding = binding_of(scope.tenant, scope.fingerprint, keys)
            return self._book.issue(binding, pieces, scope.block_bytes, timeout_s, end)
        except BaseException:
            end()
            raise

    def _piece(self, lease: Leased, scope: Scope, fds: dict[int, int]) -> Piece:
        """Where a payload is; `fds` gets a descriptor of the ticket's own for each chunk."""
        arena = self._store.arena
        chunk = arena.chunk_numbered(lease.place.chunk)
        if chunk is None:
            raise AssertionError("a chunk with leased blocks is there")
        if chunk.number not in fds:
            fds[chunk.number] = os.dup(chunk.memory.fd)
        view = arena.view(lease.place.packed(), scope.block_bytes)
        return Piece(fds[chunk.number], lease.place.slot * chunk.slot_bytes, view.toreadonly())

    def _count_in_memory(self, scope: Scope, keys: Sequence[bytes]) -> int:
        rows, slots = self._store.index.prefix(keys, scope.number), self._store.index.slot
        return next((at for at, row in enumerate(rows) if slots[row] == NO_SLOT), len(rows))

    async def _bring_to_memory(self, scope: Scope, keys: Sequence[bytes], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        reads = [asyncio.wrap_future(read) for read in self._store.start_prefetch(scope, keys, timeout_s)]
        if reads:
            await asyncio.wait(reads, timeout=max(0.0, deadline_s - time.monotonic()))

    def _count_visible(self, scope: Scope, keys: Sequence[bytes]) -> int:
        store = self._store
        rows = store.index.prefix(keys, scope.number)
        if store.disk is not None and not store.disk.readable:
            return self._count_in_memory(scope, keys)
        return len(rows)

    def _scope(self, named: pb.Scope) -> Scope | None:
        if named.session:
            raise InvalidArgument("scope.session", "a peer has none")
        return self._store.scopes.find(named.tenant, named.fingerprint)


def _keys(packed: bytes) -> list[bytes]:
    num, rest = divmod(len(packed), KEY_BYTES)
    if rest or num > MAX_KEYS:
        raise InvalidArgument("keys", f"{len(packed)} bytes; give up to {MAX_KEYS} keys of {KEY_BYTES} bytes")
    return [packed[start : start + KEY_BYTES] for start in range(0, len(packed), KEY_BYTES)]
