"""Chains on their way to the stores that they belong to: offered by the one that has them, read by the one that wants.

The reader decides when and what, so no store is filled by others faster than it can take it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from shoal.api.kv_store.v1 import kv_peer_pb2
from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import join_keys
from shoal.kv_store.remote.options import MAX_KEYS, RemoteOptions
from shoal.kv_store.remote.peer import Peer, PeerFailed, PeerRefused
from shoal.kv_store.remote.pulling import Puller
from shoal.kv_store.scopes import Scope
from shoal.kv_store.store import Store
from shoal.rpc.errors import ShoalError

MAX_OUTGOING: Final = 1024
"""Chains that wait to be offered; the oldest go first when there are more, and are found here alone."""
MAX_INCOMING: Final = 64
"""Offers that wait to be read; further ones are not wanted."""
_log = structlog.get_logger("shoal.kv_store")
READ_TIMEOUT_S: Final = 10.0
"""For one offer: it is nobody's request."""


class Outbox:
    """Chains to offer. A chain that grows waits as one. Belongs to the store's thread."""

    def __init__(
        self,
        store: Store,
        options: RemoteOptions,
        own: str,
        owners: Callable[[Sequence[bytes]], list[Peer]],
        replicas: Callable[[Sequence[bytes]], list[Peer]],
    ) -> None:
        """owners: to whom a chain belongs, if it is not this store. replicas: who should have it when it is hot."""
        self._store = store
        self._options = options
        self._own = own
        self._owners = owners
        self._replicas = replicas
        self._waiting: OrderedDict[tuple[int, bytes], bool] = OrderedDict()
        """(scope, last key): whether it is hot."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, scope: Scope, keys: Sequence[bytes], *, hot: bool = False) -> None:
        """Blocks that follow each other; those before them are there as well."""
        self._waiting.pop((scope.number, self._parent_key(keys[0])), None)
        for key in keys[:-1]:
            self._waiting.pop((scope.number, key), None)
        self._waiting[scope.number, keys[-1]] = hot
        if len(self._waiting) > MAX_OUTGOING:
            self._waiting.popitem(last=False)
            self._store.counters.add("offers_dropped")

    async def flush(self) -> None:
        """Offers everything that waits at this moment; those who do not answer are left out."""
        waiting, self._waiting = self._waiting, OrderedDict()
        for (number, last_key), hot in waiting.items():
            keys = self._chain(number, last_key)
            if not 0 < len(keys) <= MAX_KEYS:
                continue
            for peer in self._replicas(keys) if hot else self._owners(keys):
                await self._offer(peer, self._store.scopes.numbered(number), keys)

    async def _offer(self, peer: Peer, scope: Scope, keys: Sequence[bytes]) -> None:
        if not peer.breaker.allow():
            return
        request = kv_peer_pb2.OfferRequest(
            scope=pb.Scope(tenant=scope.tenant, fingerprint=scope.fingerprint),
            keys=join_keys(keys),
            block_bytes=scope.block_bytes,
            address=self._own,
        )
        try:
            taken = await peer.call("Offer", request, kv_peer_pb2.OfferResponse, self._options.call_timeout_s)
        except (PeerFailed, PeerRefused):
            self._store.counters.add("peer_failures")
            return
        self._store.counters.add("offers_sent")
        self._store.counters.add("offers_taken", taken.num_wanted > 0)

    def _parent_key(self, key: bytes) -> bytes:
        index = self._store.index
        row = index.find(key)
        parent = index.parent[row] if row else 0
        return index.key(parent) if parent else b""

    def _chain(self, number: int, last_key: bytes) -> list[bytes]:
        """From the first block to the last one; nothing when that is gone."""
        index = self._store.index
        row = index.find(last_key)
        if not row or index.scope[row] != number:
            return []
        keys = []
        while row:
            keys.append(index.key(row))
            row = index.parent[row]
        return keys[::-1]


class Inbox:
    """Offers of others, read one after the other. Belongs to the store's thread."""

    def __init__(self, store: Store, puller: Puller, find_peer: Callable[[str], Peer | None]) -> None:
        """find_peer: by address, among those that are known."""
        self._store = store
        self._puller = puller
        self._find_peer = find_peer
        self._waiting: deque[tuple[Peer, Scope, Sequence[bytes]]] = deque()
        self._reading: asyncio.Task[None] | None = None

    def take(self, request: kv_peer_pb2.OfferRequest, keys: Sequence[bytes]) -> int:
        """Blocks of an offer that will be read. Raises InvalidArgument and others for scopes that cannot be."""
        store, peer = self._store, self._find_peer(request.address)
        named, known = request.scope, store.tenants.known
        is_foreign = known is not None and named.tenant not in known
        if peer is None or not keys or is_foreign or store.draining or len(self._waiting) >= MAX_INCOMING:
            store.counters.add("offers_refused")
            return 0
        scope = store.scopes.open(named.tenant, named.fingerprint, request.block_bytes)
        missing = self._missing(scope, keys)
        if not missing:
            return 0
        self._waiting.append((peer, scope, keys))
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return len(missing)

    async def close(self) -> None:
        """Gives up what waits."""
        self._waiting.clear()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _missing(self, scope: Scope, keys: Sequence[bytes]) -> Sequence[bytes]:
        return keys[len(self._store.index.prefix(keys, scope.number)) :]

    async def _read(self) -> None:
        while self._waiting:
            peer, scope, keys = self._waiting.popleft()
            try:
                await self._read_one(peer, scope, keys)
            except Exception as error:  # one offer that cannot be read must not keep those behind it from being read
                self._store.counters.add("housekeeping_failures")
                _log.error("cannot read an offer", peer=peer.address, exc_info=error)

    async def _read_one(self, peer: Peer, scope: Scope, keys: Sequence[bytes]) -> None:
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        while missing := self._admitted(scope, self._missing(scope, keys)):
            if not await _ignoring_errors(self._puller.pull(peer, scope, missing, deadline_s)):
                break

    def _admitted(self, scope: Scope, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Leading blocks that are worth more than what they would displace."""
        admit, slot_bytes = scope.policy.admit, scope.pool.slot_bytes
        for position, key in enumerate(keys):
            if not admit(key, slot_bytes, 0.0):
                self._store.counters.add("refused_not_admitted")
                return keys[:position]
        return keys


async def _ignoring_errors(pull: Awaitable[int]) -> int:
    try:
        return await pull
    except ShoalError:
        return 0
