"""Sharing with other stores, as this store's control sees it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import structlog

from shoal.api.kv_store.v1 import kv_peer_pb2
from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.blocks import join_keys
from shoal.kv_store.remote.addresses import Addresses
from shoal.kv_store.remote.hotness import Hotness
from shoal.kv_store.remote.offers import Inbox, Outbox
from shoal.kv_store.remote.options import MAX_KEYS, RemoteOptions
from shoal.kv_store.remote.peer import Peer, PeerFailed, PeerRefused
from shoal.kv_store.remote.pulling import PULL_SESSION, Puller
from shoal.kv_store.remote.rendezvous import anchors, candidates, rank
from shoal.kv_store.scopes import Scope
from shoal.kv_store.sessions import Session
from shoal.kv_store.store import Store

MEMORY_OF_ANSWERS_S: Final = 1.0
"""A prefetch right after a lookup does not ask again."""
MAX_ANSWERS: Final = 1024
_log = structlog.get_logger("shoal.kv_store")


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks that are wanted, and those before them, whose keys say where the chain belongs."""

    keys: Sequence[bytes]
    """From the chain's first block on."""
    num_leading: int = 0
    """Of them that are not wanted."""

    @property
    def wanted(self) -> Sequence[bytes]:
        """What one call may be about."""
        return self.keys[self.num_leading : self.num_leading + MAX_KEYS]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was heard of a chain."""

    asked_at_s: float
    keys: list[bytes]
    found: dict[str, int]
    """How many leading ones of them each store has."""


class Exchange:
    """Belongs to the store's thread. `close` ends it before the store."""

    def __init__(self, store: Store, addresses: Addresses, options: RemoteOptions) -> None:
        self.addresses = addresses
        self.hotness = Hotness(options.hot_calls, options.hot_window_s, self._spread)
        self._store = store
        self._options = options
        self.threads = ThreadPoolExecutor(options.max_transfers, thread_name_prefix="kv-pull")
        self._puller = Puller(store.memory, store.writing, store.counters, self.threads, options)
        self.outbox = Outbox(store, options, addresses.own, self._owners, self._replicas)
        self.inbox = Inbox(store, self._puller, self.find_peer)
        self._peers: dict[str, Peer] = {}
        self._answers: OrderedDict[tuple[int, bytes], _Answer] = OrderedDict()
        self._choose = random.Random()  # noqa: S311 - which of several equal stores is asked
        self._keep_peers()
        store.writing.on_stored = self._stored
        store.describe_peers = self.describe
        repeat = store.housekeeping.repeat
        self._tasks = [
            asyncio.create_task(repeat("peers", options.refresh_every_s, self._follow_addresses)),
            asyncio.create_task(repeat("offers", options.offer_delay_s, self.outbox.flush)),
        ]

    @property
    def peers(self) -> list[Peer]:
        """Every other store."""
        return list(self._peers.values())

    def find_peer(self, address: str) -> Peer | None:
        """The other store at an address."""
        return self._peers.get(address)

    def describe(self) -> list[pb.PeerStats]:
        """What this store thinks of the others."""
        return [
            pb.PeerStats(
                address=peer.address,
                problem=peer.breaker.problem,
                num_pulled=peer.num_pulled,
                num_failures=peer.breaker.num_failures,
            )
            for peer in self._peers.values()
        ]

    async def locate(self, scope: Scope, chain: Chain, num_visible: int, timeout_s: float) -> int:
        """Leading blocks that are visible here, or that one other store has. Ends within the time."""
        num_asked = len(chain.wanted)
        if num_visible >= num_asked:
            return num_visible
        found = await self._ask(scope, chain, timeout_s)
        num = max(found.values(), default=0)
        self._store.counters.add("peer_hits", max(0, num - num_visible))
        self._store.counters.add("peer_misses", num_asked - max(num, num_visible))
        return max(num, num_visible)

    async def pull(self, scope: Scope, chain: Chain, deadline_s: float) -> None:
        """Brings what others have of a chain to memory, as much as the time allows."""
        if chain.num_leading and not self._store.index.find(chain.keys[chain.num_leading - 1]):
            chain = Chain(chain.keys)  # blocks cannot be here without those before them
        keys = chain.wanted
        if not keys:
            return
        useless: set[str] = set()
        found, asked_without = self._remembered(scope, keys), -1
        while time.monotonic() < deadline_s and not self._store.draining:
            num_visible = len(self._store.index.prefix(keys, scope.number))
            peer = self._best({a: n for a, n in found.items() if n > num_visible and a not in useless})
            if num_visible == len(keys) or (peer is None and asked_without == len(useless)):
                return
            if peer is None:  # whoever answered first was enough until it failed
                asked_without = len(useless)
                timeout_s = min(self._options.call_timeout_s, deadline_s - time.monotonic())
                found = await self._ask(scope, chain, timeout_s, useless)
                continue
            end = found[peer.address]
            num = await self._puller.pull(peer, scope, keys[num_visible:end], deadline_s)
            if not num:
                useless.add(peer.address)
            elif peer.address != rank(anchors(chain.keys[: chain.num_leading + end])[0], self._alive(), 1)[0]:
                self.outbox.add(scope, keys[num_visible + num - 1 : num_visible + num])

    async def close(self) -> None:
        """Ends every call and transfer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.inbox.close()
        for peer in self._peers.values():
            peer.close()
        await self._puller.close()
        self.threads.shutdown(wait=True)

    def _remembered(self, scope: Scope, keys: Sequence[bytes]) -> dict[str, int]:
        """What others answered when they were asked for these keys and perhaps for more."""
        answer = self._answers.get((scope.number, keys[0]))
        if answer is None or time.monotonic() - answer.asked_at_s >= MEMORY_OF_ANSWERS_S:
            return {}
        if answer.keys[: len(keys)] != list(keys):
            return {}
        return {address: min(num, len(keys)) for address, num in answer.found.items()}

    async def _ask(self, scope: Scope, chain: Chain, timeout_s: float, useless: Collection[str] = ()) -> dict[str, int]:
        """How many leading blocks each store has that may have some. One that has all of them ends the waiting."""
        num_replicas, alive = self._options.num_replicas, self._alive()
        keys = chain.wanted
        hosts = candidates(chain.keys, self.addresses.hosts, num_replicas)
        if not set(hosts) <= set(alive):  # those that stepped in for the dead
            hosts = list(dict.fromkeys([*hosts, *candidates(chain.keys, alive, num_replicas)]))
        peers = [self._peers[host] for host in hosts if host in self._peers and host not in useless]
        asked = [peer for peer in peers if peer.breaker.allow()]
        request = kv_peer_pb2.LocateRequest(
            scope=pb.Scope(tenant=scope.tenant, fingerprint=scope.fingerprint), keys=join_keys(keys)
        )
        calls = {asyncio.ensure_future(self._ask_one(peer, request, timeout_s)) for peer in asked}
        found: dict[str, int] = {}
        for call in asyncio.as_completed(calls):
            address, num = await call
            found[address] = min(num, len(keys))
            if num >= len(keys):
                break
        # Those that are not waited for any more end by their own deadlines and tell their breakers.
        self._answers.pop((scope.number, keys[0]), None)
        self._answers[scope.number, keys[0]] = _Answer(time.monotonic(), list(keys), found)
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
        return found

    async def _ask_one(self, peer: Peer, request: kv_peer_pb2.LocateRequest, timeout_s: float) -> tuple[str, int]:
        try:
            answer = await peer.call("Locate", request, kv_peer_pb2.LocateResponse, timeout_s)
        except (PeerFailed, PeerRefused):
            self._store.counters.add("peer_failures")
            return peer.address, 0
        return peer.address, answer.num_visible

    def _best(self, found: dict[str, int]) -> Peer | None:
        """Whoever has most; one of several at random, so that what is hot is read from all who have it."""
        most = max(found.values(), default=0)
        addresses = [address for address, num in found.items() if num == most and address in self._peers]
        return self._peers[self._choose.choice(addresses)] if addresses else None

    def _stored(self, session: Session, keys: Sequence[bytes]) -> None:
        if session.id != PULL_SESSION and self._peers:
            self.outbox.add(session.scope, keys)

    def _spread(self, scope: Scope, keys: Sequence[bytes]) -> None:
        """A chain is hot: those who are asked for it should have it."""
        self._store.counters.add("hot_units")
        self.outbox.add(scope, keys, hot=True)

    def _alive(self) -> list[str]:
        """This store, and those that work as far as it knows."""
        own = self.addresses.own
        return [host for host in self.addresses.hosts if host == own or self._peers[host].breaker.is_closed]

    def _owners(self, keys: Sequence[bytes]) -> list[Peer]:
        foremost = rank(anchors(keys)[0], self._alive(), 1)
        return [self._peers[host] for host in foremost if host in self._peers]

    def _replicas(self, keys: Sequence[bytes]) -> list[Peer]:
        hosts = rank(anchors(keys)[0], self._alive(), self._options.num_replicas)
        return [self._peers[host] for host in hosts if host in self._peers]

    def _keep_peers(self) -> None:
        """Makes and ends peers as the addresses say."""
        wanted = set(self.addresses.hosts) - {self.addresses.own}
        for address in set(self._peers) - wanted:
            self._peers.pop(address).close()
        for address in wanted - set(self._peers):
            self._peers[address] = Peer(address, self._options)

    def _follow_addresses(self) -> None:
        before = self.addresses.problem
        if self.addresses.refresh():
            _log.info("peers changed", hosts=list(self.addresses.hosts))
            self._keep_peers()
        if self.addresses.problem and self.addresses.problem != before:
            _log.warning("peers are those of before", error=self.addresses.problem)
