"""Requests of kv_store.proto, from gRPC and from the Unix socket alike: checked, done, answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from functools import partial
from typing import Final, Protocol

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import KEY_BYTES
from shoal.kv_client.roots import NUM_BUCKETS
from shoal.kv_store.checking import check_suspects
from shoal.kv_store.draining import drain_store
from shoal.kv_store.remote.exchange import Chain, Exchange
from shoal.kv_store.reporting import list_blocks, make_stats
from shoal.kv_store.scopes import Scope
from shoal.kv_store.sessions import Session
from shoal.kv_store.store import MAX_PREFETCH_S, Store
from shoal.kv_store.tenants import Caller
from shoal.kv_store.verifying import verify_blocks
from shoal.rpc.errors import Draining, InvalidArgument, PermissionDenied, ResourceExhausted

MAX_STAGING_BLOCKS: Final = 4096
RETRY_AFTER_S: Final = 0.5
MAX_SUSPECTS: Final = 64
"""Of one call; further ones are named again by whoever reads them next."""
MAX_PEERS_S: Final = 1.0
MAX_LEADING_KEYS: Final = 65_536
MAX_OWNER_BYTES: Final = 64
MAX_PIN_MS: Final = 86_400_000


class _Scoped(Protocol):
    @property
    def scope(self) -> pb.Scope: ...


class Control:
    """Answers one request at a time, on the store's thread.

    `session` is that of the socket; None for a gRPC call, which has a `caller` instead, and may name a session.
    """

    def __init__(self, store: Store, copiers: Executor, max_batch_size: int) -> None:
        self.store = store
        self.max_batch_size = max_batch_size
        self.copiers = copiers
        """Threads that copy and sum payloads."""
        self.exchange: Exchange | None = None
        """Sharing with other stores, if any."""

    def open(self, request: pb.OpenRequest) -> Session:
        """A session. Raises InvalidArgument, PermissionDenied, ResourceExhausted."""
        if request.num_staging_blocks > MAX_STAGING_BLOCKS:
            raise InvalidArgument("num_staging_blocks", f"{request.num_staging_blocks}; at most {MAX_STAGING_BLOCKS}")
        tenant = request.scope.tenant
        self.store.tenants.check(tenant, request.token)
        return self.store.open_session(
            tenant, request.scope.fingerprint, request.block_bytes, request.num_staging_blocks
        )

    def describe_session(self, session: Session, *, wants_roots: bool = False) -> pb.OpenResponse:
        """What the client needs to know of it."""
        has_roots = wants_roots and self.store.index.roots_of(session.scope.number) is not None
        return pb.OpenResponse(
            session=session.id,
            epoch=self.store.epoch,
            num_root_buckets=NUM_BUCKETS if has_roots else 0,
            staging_stride=session.staging.stride if session.staging is not None else 0,
            max_batch_size=self.max_batch_size,
            lease_timeout_ms=int(1000 * self.store.limits.lease_timeout_s),
        )

    def map_chunk(self, request: pb.MapRequest, session: Session) -> tuple[pb.MapResponse, int]:
        """A chunk and its descriptor."""
        fd = self.store.map_chunk(session, request.chunk)
        chunk = self.store.arena.chunk_numbered(request.chunk)
        if chunk is None:
            raise AssertionError("a chunk that was mapped is there")
        response = pb.MapResponse(
            num_bytes=chunk.memory.num_bytes,
            generations_offset=chunk.generations_offset,
            num_slots=chunk.num_slots,
            slot_bytes=chunk.slot_bytes,
        )
        return response, fd

    def lookup(
        self, request: pb.LookupRequest, session: Session | None = None, caller: Caller | None = None
    ) -> pb.LookupResponse:
        """See the proto."""
        keys = self._keys("keys", request.keys)
        scope = self._scope(request, session, caller)
        if scope is None:
            self.store.counters.add("misses", len(keys))
            return pb.LookupResponse()
        num_visible, num_in_memory = self.store.lookup(scope, keys)
        return pb.LookupResponse(num_visible=num_visible, num_in_memory=num_in_memory, num_with_peers=num_visible)

    def asks_peers(self, request: pb.LookupRequest) -> bool:
        """Whether other stores are to be asked, where there are any."""
        return self.exchange is not None and request.peers_timeout_ms > 0

    async def lookup_with_peers(
        self, request: pb.LookupRequest, session: Session | None = None, caller: Caller | None = None
    ) -> pb.LookupResponse:
        """See the proto."""
        response = self.lookup(request, session, caller)
        scope = self._scope(request, session, caller)
        if self.exchange is not None and request.peers_timeout_ms and scope is not None:
            chain = self._chain(request)
            timeout_s = min(request.peers_timeout_ms / 1000, MAX_PEERS_S)
            response.asked_peers = bool(self.exchange.peers) and response.num_visible < len(chain.wanted)
            response.num_with_peers = await self.exchange.locate(scope, chain, response.num_visible, timeout_s)
        return response

    def reserve(self, request: pb.ReserveRequest, session: Session | None = None) -> pb.ReserveResponse:
        """See the proto."""
        keys = self._keys("keys", request.keys)
        self._key("parent_key", request.parent_key)
        self._key("namespace_key", request.namespace_key)
        if not 0 <= request.cost_s < 1e6:
            raise InvalidArgument("cost_s", f"{request.cost_s}; give 0 to 1e6")
        owner = self._session(request, session)
        if self.store.draining:
            self.store.counters.add("refused_draining")
            raise Draining("the store is draining: it takes no more blocks")
        statuses, blocks = self.store.writing.reserve(
            owner, keys, request.parent_key, request.namespace_key, request.cost_s
        )
        if keys and statuses[0] == pb.BLOCK_STATUS_NO_SPACE:
            raise ResourceExhausted("no room for the first block, and nothing that may be evicted", RETRY_AFTER_S)
        return pb.ReserveResponse(statuses=statuses, staging_blocks=blocks)

    async def commit(self, request: pb.CommitRequest, session: Session | None = None) -> pb.CommitResponse:
        """See the proto. The copy goes on, and is ended properly, when the caller leaves meanwhile."""
        keys = self._keys("keys", request.keys)
        if len(request.checksums) != len(keys):
            raise InvalidArgument("checksums", f"{len(request.checksums)} given for {len(keys)} keys; give one each")
        job = self.store.writing.start(self._session(request, session), keys, request.checksums)
        if not job.moves:
            return pb.CommitResponse(statuses=self.store.writing.finish(job))
        copying = asyncio.get_running_loop().run_in_executor(self.copiers, job.run)
        done = asyncio.get_running_loop().create_future()

        def finish(_: object) -> None:
            statuses = self.store.writing.finish(job)
            if not done.done():
                done.set_result(statuses)

        copying.add_done_callback(finish)
        return pb.CommitResponse(statuses=await done)

    def acquire(self, request: pb.AcquireRequest, session: Session | None = None) -> pb.AcquireResponse:
        """See the proto."""
        keys = self._keys("keys", request.keys)
        owner = self._session(request, session)
        leased, num_visible = self.store.acquire(owner, keys)
        return pb.AcquireResponse(
            chunks=[lease.place.chunk for lease in leased],
            slots=[lease.place.slot for lease in leased],
            generations=[lease.generation for lease in leased],
            checksums=[lease.checksum for lease in leased],
            num_visible=num_visible,
            retired_chunks=self.store.take_retired(owner),
        )

    async def release(self, request: pb.ReleaseRequest, session: Session | None = None) -> pb.ReleaseResponse:
        """See the proto. Suspects are looked at first, at most MAX_SUSPECTS, under the leases that are given back."""
        owner = self._session(request, session)
        suspects = self._keys("suspect_keys", request.suspect_keys)[:MAX_SUSPECTS]
        num_removed = 0
        if suspects:
            is_over = partial(_is_closed, owner)
            num_removed = await check_suspects(self.store, self.copiers, owner.scope, suspects, is_over)
        response = self.give_back(request, owner)
        response.num_removed = num_removed
        return response

    def give_back(self, request: pb.ReleaseRequest, session: Session) -> pb.ReleaseResponse:
        """`release` of what has no suspects, without waiting for anything."""
        owner = self._session(request, session)
        self.store.release(owner, self._keys("leased_keys", request.leased_keys))
        self.store.note_unmapped(owner, request.unmapped_chunks)
        self.store.writing.give_up(owner, self._keys("reserved_keys", request.reserved_keys))
        return pb.ReleaseResponse()

    async def prefetch(
        self, request: pb.PrefetchRequest, session: Session | None = None, caller: Caller | None = None
    ) -> pb.PrefetchResponse:
        """See the proto. Reads go on, and their blocks stay, when the caller leaves or its time is over."""
        keys = self._keys("keys", request.keys)
        scope = self._scope(request, session, caller)
        if scope is None:
            return pb.PrefetchResponse()
        timeout_s = min(request.timeout_ms / 1000 or MAX_PREFETCH_S, MAX_PREFETCH_S)
        deadline_s = time.monotonic() + timeout_s
        reads = [asyncio.wrap_future(read) for read in self.store.start_prefetch(scope, keys, timeout_s)]
        pull = None
        if self.exchange is not None and not request.local_only:
            pull = asyncio.ensure_future(self.exchange.pull(scope, self._chain(request), deadline_s))
        if reads:
            await asyncio.wait(reads, timeout=timeout_s)
        if pull is not None:
            await pull
        return pb.PrefetchResponse(num_in_memory=self.store.lookup(scope, keys)[1])

    def evict(
        self, request: pb.EvictRequest, session: Session | None = None, caller: Caller | None = None
    ) -> pb.EvictResponse:
        """See the proto."""
        keys = self._keys("keys", request.keys)
        scope = self._scope(request, session, caller)
        num_evicted, num_leased = (0, 0) if scope is None else self.store.removal.evict(scope, keys)
        return pb.EvictResponse(num_evicted=num_evicted, num_leased=num_leased)

    def pin(self, request: pb.PinRequest, caller: Caller) -> pb.PinResponse:
        """See the proto."""
        keys = self._keys("keys", request.keys)
        self._owner(request.owner)
        if not 1 <= request.ttl_ms <= MAX_PIN_MS:
            raise InvalidArgument("ttl_ms", f"{request.ttl_ms}; give 1 to {MAX_PIN_MS}")
        scope = self._scope(request, None, caller)
        num_pinned = 0 if scope is None else self.store.pin(scope, request.owner, keys, request.ttl_ms / 1000)
        return pb.PinResponse(num_pinned=num_pinned)

    def unpin(self, request: pb.UnpinRequest, caller: Caller) -> pb.UnpinResponse:
        """See the proto."""
        keys = self._keys("keys", request.keys)
        self._owner(request.owner)
        scope = self._scope(request, None, caller)
        num_unpinned = 0 if scope is None else self.store.pins.unpin(scope, request.owner, keys)
        return pb.UnpinResponse(num_unpinned=num_unpinned)

    def stats(self, request: pb.StatsRequest, caller: Caller) -> pb.StatsResponse:
        """See the proto."""
        return make_stats(self.store, caller.restrict(request.tenant), caller)

    def watch(self, request: pb.WatchRequest, caller: Caller) -> AsyncIterator[pb.WatchResponse]:
        """See the proto."""
        return self.store.events.watch(request.epoch, request.start_seq, caller.restrict(request.tenant))

    def list_blocks(self, request: pb.ListRequest, caller: Caller) -> AsyncIterator[pb.ListResponse]:
        """See the proto."""
        return list_blocks(self.store, caller.restrict(request.tenant), request.limit)

    def verify(self, request: pb.VerifyRequest, caller: Caller) -> AsyncIterator[pb.VerifyResponse]:
        """See the proto."""
        return verify_blocks(self.store, self.copiers, caller.restrict(request.tenant), request.max_bytes_per_s)

    async def drain(self, request: pb.DrainRequest, caller: Caller) -> AsyncIterator[pb.DrainResponse]:
        """See the proto."""
        caller.require_operator()
        if request.resume:
            self.store.draining = False
            yield pb.DrainResponse(done=True)
            return
        async for progress in drain_store(self.store, request.timeout_ms / 1000):
            yield progress

    def _owner(self, owner: str) -> None:
        if not 1 <= len(owner.encode()) <= MAX_OWNER_BYTES:
            raise InvalidArgument("owner", f"{len(owner.encode())} bytes; give 1 to {MAX_OWNER_BYTES}")

    def _chain(self, request: pb.LookupRequest | pb.PrefetchRequest) -> Chain:
        leading, rest = divmod(len(request.leading_keys), KEY_BYTES)
        if rest or leading > MAX_LEADING_KEYS:
            problem = f"{len(request.leading_keys)} bytes; give up to {MAX_LEADING_KEYS} keys of {KEY_BYTES} bytes"
            raise InvalidArgument("leading_keys", problem)
        packed = request.leading_keys + request.keys
        return Chain([packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)], leading)

    def _keys(self, field: str, packed: bytes) -> list[bytes]:
        num, rest = divmod(len(packed), KEY_BYTES)
        if rest:
            raise InvalidArgument(field, f"{len(packed)} bytes, which are not keys of {KEY_BYTES} bytes")
        if num > self.max_batch_size:
            raise InvalidArgument(field, f"{num} keys; at most {self.max_batch_size} a call")
        return [packed[start : start + KEY_BYTES] for start in range(0, len(packed), KEY_BYTES)]

    def _key(self, field: str, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise InvalidArgument(field, f"{len(key)} bytes; a key has {KEY_BYTES}")

    def _session(self, request: _Scoped, session: Session | None) -> Session:
        """The session that a call belongs to; what it says of the scope has to agree. Raises NotFound and others."""
        owner = session if session is not None else self.store.find_session(request.scope.session)
        named = request.scope
        if named.tenant or named.fingerprint:
            scope = owner.scope
            if named.tenant != scope.tenant:
                self.store.counters.add("foreign_tenant")
                raise PermissionDenied("scope.tenant: not the one of the session")
            if named.fingerprint != scope.fingerprint:
                self.store.counters.add("foreign_fingerprint")
                raise InvalidArgument("scope.fingerprint", "not the one of the session; open another")
        elif session is None:
            raise InvalidArgument("scope", "tenant and fingerprint are missing")
        return owner

    def _scope(self, request: _Scoped, session: Session | None, caller: Caller | None) -> Scope | None:
        """The scope a call is about; None when nothing was ever stored in it."""
        named = request.scope
        if session is not None or named.session:
            return self._session(request, session).scope
        if caller is None or (caller.tenant and caller.tenant != named.tenant):
            self.store.counters.add("foreign_tenant")
            raise PermissionDenied("scope.tenant: not the one of the token")
        return self.store.scopes.find(named.tenant, named.fingerprint)


def _is_closed(session: Session) -> bool:
    return session.closed
