"""A store against a dictionary: it may forget, it may not be wrong. Whoever inherits calls `start` first."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.checksum import crc32c
from shoal.kv_store.arena import Arena
from shoal.kv_store.arena.chunk import chunk_file_bytes
from shoal.kv_store.events import DISK, MEMORY, Event, Stored
from shoal.kv_store.index import NO_SLOT
from shoal.kv_store.policy import make_policy
from shoal.kv_store.reporting import make_stats
from shoal.kv_store.scopes import Scope
from shoal.kv_store.sessions import Session
from shoal.kv_store.store import Leased, Store, StoreLimits
from shoal.kv_store.tenants import Caller, Tenants

BLOCK_BYTES = 4096
ROOT = b"n" * 16
SCOPES = [("a", b"f"), ("a", b"g"), ("b", b"f")]
SCOPE_OF_SESSION = [0, 0, 0, 1, 2]
SESSIONS = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4])
NODES = st.builds(lambda node, other: (node, other), st.integers(1, 15), st.sampled_from([0] * 9 + [1, 2]))
"""A node of a binary tree, and how far the scope whose keys are named is from the session's own."""


def key(scope: int, node: int) -> bytes:
    return bytes([scope]) + node.to_bytes(15, "big")


def chain(session: int, named: tuple[int, int]) -> list[bytes]:
    """Keys from the root of the tree to one of its nodes."""
    node, other = named
    path = []
    while node:
        path.append(key((SCOPE_OF_SESSION[session] + other) % 3, node))
        node //= 2
    return path[::-1]


def payload(scope: int, block: bytes) -> bytes:
    return (block + bytes([scope])) * (BLOCK_BYTES // 17) + bytes(BLOCK_BYTES % 17)


def check_now(store: Store, scope: Scope, keys: Sequence[bytes]) -> int:
    """Looks at blocks in memory, and removes those that are wrong; how many those were."""
    num_wrong = 0
    for each in keys:
        row = store.index.find(each)
        if not row or store.index.scope[row] != scope.number or store.index.slot[row] == NO_SLOT:
            continue
        view = store.arena.view(store.index.slot[row], scope.block_bytes)
        if crc32c(view) != store.index.checksum[row]:
            num_wrong += 1
            store.removal.remove_wrong(row)
    return num_wrong


class StoreModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.ttl_s = 0.0
        self.disk_quota_bytes = 1 << 62

    def start(self, num_chunks: int, quota: int, policy: str) -> None:
        self.make_store: Callable[[], Store] = partial(self.new_store, num_chunks, quota, policy)
        self.store = self.make_store()
        self.begin_watching()
        self.sessions: dict[int, Session] = {}
        self.reserved: dict[int, dict[bytes, int]] = {}
        self.leases: list[tuple[Session, bytes, Leased]] = []
        self.until_s: dict[tuple[bytes, bytes], float] = {}
        self.written: dict[bytes, int] = {}
        self.reads: list[Future[bool]] = []
        self.pins: dict[tuple[int, str, bytes], float] = {}
        """Scope, owner and key: until when."""

    def new_store(self, num_chunks: int, quota: int, policy: str) -> Store:
        arena = Arena(num_chunks * chunk_file_bytes(4, BLOCK_BYTES, "off"), 4 * BLOCK_BYTES, "off")
        limits = StoreLimits(lease_timeout_s=10.0, max_staging_bytes=1 << 20, ttl_s=self.ttl_s)
        tenants = Tenants(memory_bytes=quota * BLOCK_BYTES, disk_bytes=self.disk_quota_bytes)
        return Store(arena, partial(make_policy, policy), limits, tenants, clock=lambda: self.now_s)

    def begin_watching(self) -> None:
        """From here on `watched` is what somebody knows who got a snapshot of each tenant, and every event since."""
        store = self.store
        pairs = [(tier, tenant) for tier in (MEMORY, DISK) for tenant in ("a", "b")]
        self.watched = {(tier, tenant): set(store._list_keys(tier, tenant)) for tier, tenant in pairs}
        publish = store.events.publish

        def hear(events: Iterable[Event]) -> None:
            heard = list(events)
            publish(heard)
            for event in heard:
                known = self.watched[event.tier, event.tenant]
                if isinstance(event, Stored):
                    assert not known & set(event.keys), "stored twice"
                    known.update(event.keys)
                else:
                    assert known >= set(event.keys), "removed without having been there"
                    known.difference_update(event.keys)

        store.events.publish = hear  # type: ignore[method-assign]

    @invariant()
    def events_tell_what_is_there(self) -> None:
        for (tier, tenant), known in getattr(self, "watched", {}).items():
            assert known == set(self.store._list_keys(tier, tenant))

    def session(self, number: int) -> Session:
        if number not in self.sessions:
            tenant, fingerprint = SCOPES[SCOPE_OF_SESSION[number]]
            self.sessions[number] = self.store.open_session(tenant, fingerprint, BLOCK_BYTES, 6)
            self.reserved[number] = {}
        return self.sessions[number]

    @rule(number=SESSIONS, node=NODES, skip=st.integers(0, 2))
    def reserve(self, number: int, node: tuple[int, int], skip: int) -> None:
        session, keys = self.session(number), chain(number, node)
        parent = ROOT if skip == 0 or skip >= len(keys) else keys[skip - 1]
        keys = keys if parent == ROOT else keys[skip:]
        statuses, blocks = self.store.writing.reserve(session, keys, parent, ROOT, 0.0)
        assert len(statuses) == len(keys)
        fresh = [each for each, status in zip(keys, statuses, strict=True) if status == pb.BLOCK_STATUS_RESERVED]
        self.reserved[number] |= dict(zip(fresh, blocks, strict=True))
        for each, status in zip(keys, statuses, strict=True):
            if status == pb.BLOCK_STATUS_PRESENT:
                assert self.written[each] == SCOPE_OF_SESSION[number]

    @rule(number=SESSIONS, num=st.integers(1, 6), lie=st.booleans(), leave=st.booleans())
    def commit(self, number: int, num: int, lie: bool, leave: bool) -> None:
        session = self.session(number)
        keys = list(self.reserved[number])[:num]
        for each in keys:
            assert session.staging is not None
            data = payload(SCOPE_OF_SESSION[number], each)
            ctypes.memmove(session.staging.address(self.reserved[number].pop(each)), data, BLOCK_BYTES)
        checksums = [crc32c(payload(SCOPE_OF_SESSION[number], each)) ^ lie for each in keys]
        job = self.store.writing.start(session, keys, checksums)
        if leave:
            self.leave(number)
        job.run()
        for each, status in zip(keys, self.store.writing.finish(job), strict=True):
            if status == pb.BLOCK_STATUS_PRESENT:
                assert not lie
                assert not leave
                self.written[each] = SCOPE_OF_SESSION[number]

    @rule(number=SESSIONS, node=NODES)
    def put(self, number: int, node: tuple[int, int]) -> None:
        if not self.reserved.get(number):
            self.reserve(number, node, 0)
            self.commit(number, 6, False, False)

    @rule(number=SESSIONS, first=NODES, second=NODES)
    def put_two(self, number: int, first: tuple[int, int], second: tuple[int, int]) -> None:
        self.put(number, first)
        self.put(number, second)

    @rule(number=SESSIONS)
    def abandon(self, number: int) -> None:
        session = self.session(number)
        self.store.writing.give_up(session, list(self.reserved[number]))
        self.reserved[number].clear()

    @rule(number=SESSIONS, node=NODES)
    def lookup(self, number: int, node: tuple[int, int]) -> None:
        keys = chain(number, node)
        num_visible, num_in_memory = self.store.lookup(self.session(number).scope, keys)
        assert num_in_memory <= num_visible
        assert all(self.written[each] == SCOPE_OF_SESSION[number] for each in keys[:num_visible])

    @rule(number=SESSIONS, node=NODES)
    def acquire(self, number: int, node: tuple[int, int]) -> None:
        session, keys = self.session(number), chain(number, node)
        leased, _ = self.store.acquire(session, keys)
        for each, lease in zip(keys, leased, strict=False):
            assert self.read(lease) == payload(SCOPE_OF_SESSION[number], each)
            self.leases.append((session, each, lease))
            self.until_s[session.id, each] = self.now_s + 10.0

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.leases:
            session, each, _ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
            self.store.release(session, [each])

    @rule(number=SESSIONS, node=NODES)
    def evict(self, number: int, node: tuple[int, int]) -> None:
        self.store.removal.evict(self.session(number).scope, [chain(number, node)[-1]])

    @rule(number=SESSIONS, node=NODES)
    def flip_a_bit(self, number: int, node: tuple[int, int]) -> None:
        session, index = self.session(number), self.store.index
        row = index.find(chain(number, node)[-1])
        if not row or index.scope[row] != session.scope.number or index.slot[row] == NO_SLOT:
            assert check_now(self.store, session.scope, [chain(number, node)[-1]]) == 0
            return
        address = self.store.arena.address(index.slot[row])
        ctypes.memset(address + 7, ctypes.string_at(address + 7, 1)[0] ^ 1, 1)
        gone = {index.key(each) for each in index.subtree(row)}
        assert check_now(self.store, session.scope, [chain(number, node)[-1]]) == 1
        assert not any(index.find(each) for each in gone)
        for session, each, lease in self.leases:
            if each in gone and not session.closed:
                assert not self.is_valid(lease)
        self.forget(gone)

    def forget(self, gone: set[bytes]) -> None:
        """Blocks went although somebody had leased or pinned them."""
        self.leases = [lease for lease in self.leases if lease[1] not in gone]
        self.pins = {pin: until_s for pin, until_s in self.pins.items() if pin[2] not in gone}

    @rule(number=SESSIONS)
    def leave(self, number: int) -> None:
        if number in self.sessions:
            session = self.sessions.pop(number)
            del self.reserved[number]
            self.store.close_session(session)
            self.leases = [lease for lease in self.leases if lease[0] is not session]

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.store.expire()
        self.pins = {pin: until_s for pin, until_s in self.pins.items() if until_s > self.now_s}
        # A later lease of the same client on the same block keeps earlier ones.
        self.leases = [lease for lease in self.leases if self.until_s[lease[0].id, lease[1]] > self.now_s]
        for number, session in self.sessions.items():
            self.reserved[number] = {
                each: block for each, block in self.reserved[number].items() if each in session.reservations
            }

    @invariant()
    def leased_blocks_stay(self) -> None:
        for session, each, lease in getattr(self, "leases", []):
            assert self.is_valid(lease)
            assert self.read(lease) == payload(SCOPES.index((session.scope.tenant, session.scope.fingerprint)), each)

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "store"):
            return
        index, arena = self.store.index, self.store.arena
        disk = self.store.disk
        writing = disk.demoting.pinned if disk is not None else ()
        pending = [r for session in self.sessions.values() for r in session.reservations.values()]
        assert len(self.store.writing) == len(pending)
        slots = [index.slot[row] for row in index.in_order() if index.slot[row] != NO_SLOT]
        num_in_memory = len(slots)
        slots += [reservation.slot for reservation in pending]
        num_arriving = disk.promoting.num_slots if disk is not None else 0
        assert len(set(slots)) == len(slots)
        assert len(slots) + num_arriving == sum(pool.num_used for pool in arena.pools)
        assert arena.num_taken_bytes <= arena.capacity_bytes
        children: Counter[int] = Counter(index.parent[row] for row in index.in_order() if index.slot[row] != NO_SLOT)
        children.update(reservation.pinned_parent for reservation in pending)
        children.update(disk.promoting.parents() if disk is not None else ())
        stats = make_stats(self.store, "", Caller(""))
        assert (stats.num_blocks, stats.num_memory_blocks) == (len(index), num_in_memory)
        assert stats.num_disk_blocks == sum(index.on_disk)
        assert stats.pinned_bytes == len(self.pins) * BLOCK_BYTES
        leases: Counter[bytes] = Counter()
        for session in self.sessions.values():
            leases.update({each: lease.count for each, lease in session.leases.items()})
        assert leases.total() == len(self.leases)
        for row in index.in_order():
            each = index.key(row)
            assert index.num_memory_children[row] == children[row]
            assert index.num_leases[row] == leases[each] + (each in writing)
            assert index.num_pins[row] == sum(pinned == each for _, _, pinned in self.pins)
            assert index.slot[row] != NO_SLOT or index.on_disk[row]
            assert index.slot[row] != NO_SLOT or not index.num_pins[row]
            parent = index.parent[row]
            assert not parent or (index.find(index.key(parent)) == parent and index.scope[parent] == index.scope[row])
            assert SCOPES[self.written[each]][0] == self.store.scopes.numbered(index.scope[row]).tenant
            if index.slot[row] != NO_SLOT:
                chunk = arena.chunk(index.slot[row])
                assert any(chunk.number in p.chunks and p.tenant == SCOPES[self.written[each]][0] for p in arena.pools)

    def read(self, lease: Leased) -> bytes:
        return ctypes.string_at(self.store.arena.address(lease.place.packed()), BLOCK_BYTES)

    def is_valid(self, lease: Leased) -> bool:
        return self.store.arena.generation(lease.place.packed()) == lease.generation

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            assert all(session.closed for session in self.sessions.values())
