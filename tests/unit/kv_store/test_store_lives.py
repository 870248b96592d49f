"""The store's whole API against a dictionary: tenants, pins, time to live and disk, through restarts and lies."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from shoal.kv_store.draining import drain_store
from shoal.kv_store.index import NO_SLOT
from shoal.kv_store.policy import POLICIES
from shoal.kv_store.reporting import disk_bytes_of, list_blocks
from shoal.kv_store.verifying import verify_blocks
from support.disk_faults import CAPACITY_BYTES, OPTIONS, SEGMENT_BYTES
from support.eventually import wait_until
from support.kv_store_core import attach_disk
from support.memory_disk import MemoryDisk
from support.store_model import BLOCK_BYTES, NODES, SCOPE_OF_SESSION, SCOPES, SESSIONS, StoreModel, chain, payload

SEEDS = st.integers(0, 2**32)
MANY = st.lists(st.tuples(SESSIONS, st.integers(4, 15)), min_size=3, max_size=8)
"""Sessions, and nodes near the leaves of the tree."""
DISK_QUOTA_BYTES = 12 * BLOCK_BYTES
_T = TypeVar("_T")


class StoreLives(StoreModel):
    """Adds to the model what a store has beyond memory.

    What a thread of the disk has to say waits in a queue until a rule lets the store hear it, so that a run depends on
    its rules alone.
    """

    @initialize(
        num_chunks=st.integers(2, 5),
        policy=st.sampled_from(sorted(POLICIES)),
        ttl_s=st.sampled_from([0.0, 8.0]),
        is_disk_small=st.booleans(),
        is_disk_rationed=st.booleans(),
    )
    def begin(self, num_chunks: int, policy: str, ttl_s: float, is_disk_small: bool, is_disk_rationed: bool) -> None:
        self.ttl_s = ttl_s
        self.files = MemoryDisk()
        self.capacity_bytes = CAPACITY_BYTES // 4 if is_disk_small else CAPACITY_BYTES
        self.disk_quota_bytes = DISK_QUOTA_BYTES if is_disk_rationed else 1 << 62
        self.is_trusted = not is_disk_small
        """Nobody flipped bits, and nothing is dropped for room: what was written stays."""
        self.synced: set[bytes] = set()
        self.found_bytes: dict[str, int] = {}
        """Of each tenant's blocks after a restart: a crash may bring back what was removed, above the quota."""
        self.num_steps = 0
        self.start(num_chunks, 100, policy)
        self.open_disk()

    def open_disk(self) -> None:
        self.told: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        store = self.store
        self.log = attach_disk(
            store,
            self.files,
            self.told.put,
            capacity_bytes=self.capacity_bytes,
            segment_bytes=SEGMENT_BYTES,
            io_timeout_s=20.0,
            options=replace(OPTIONS, num_threads=1),
        )
        assert store.disk is not None
        self.tier = store.disk

    def hear(self) -> None:
        """Lets the store hear what the disk has said."""
        while not self.told.empty():
            self.told.get()()

    @rule(many=MANY, wait=st.booleans())
    def put_many(self, many: list[tuple[int, int]], wait: bool) -> None:
        self.num_steps += 1
        for number, node in many:
            self.put(number, (node, 0))
            if wait:
                self.settle()

    @rule(many=MANY)
    def put_and_sync(self, many: list[tuple[int, int]]) -> None:
        self.put_many(many, True)
        self.drain()

    @rule(many=MANY, how=st.sampled_from(["end", "kill", "power cut"]), seed=SEEDS)
    def put_and_restart(self, many: list[tuple[int, int]], how: str, seed: int) -> None:
        self.put_and_sync(many[:2])
        self.put_many(many[2:], False)
        self.restart(how, seed)
        self.read_everything(many[0][0])

    @rule(many=MANY, owner=st.sampled_from(["x", "y"]))
    def put_and_pin(self, many: list[tuple[int, int]], owner: str) -> None:
        for number, node in many:
            self.put(number, (node, 0))
            self.pin(number, (node, 0), owner, 20.0)

    @rule(many=MANY, wait=st.booleans())
    def put_and_read(self, many: list[tuple[int, int]], wait: bool) -> None:
        self.put_many(many, wait)
        for number, node in many:
            self.acquire(number, (node, 0))
            self.store.release(self.sessions[number], chain(number, (node, 0)))
            self.forget_leases(number, node)

    def forget_leases(self, number: int, node: int) -> None:
        given_back = set(chain(number, (node, 0)))
        for each in given_back:
            for at, (session, leased, _) in enumerate(self.leases):
                if session is self.sessions[number] and leased == each:
                    del self.leases[at]
                    break

    @rule()
    def settle(self) -> None:
        """Lets the disk finish everything."""

        def is_done() -> bool:
            self.hear()
            return not self.tier.num_waiting and all(read.done() for read in self.reads)

        wait_until(is_done, "the disk finishes", 20.0)
        self.reads.clear()
        index = self.store.index
        for row in index.in_order():
            assert not self.is_trusted or not index.on_disk[row] or self.log.find(index.key(row)) is not None
        for tenant in ("a", "b"):
            assert disk_bytes_of(self.store, tenant) <= max(self.disk_quota_bytes, self.found_bytes.get(tenant, 0))
        assert self.files.num_bytes <= self.capacity_bytes

    @rule(number=SESSIONS, node=NODES, wait=st.booleans())
    def prefetch(self, number: int, node: tuple[int, int], wait: bool) -> None:
        self.reads += self.store.start_prefetch(self.session(number).scope, chain(number, node))
        if wait:
            self.settle()
            self.acquire(number, node)

    @rule(number=SESSIONS, node=NODES, owner=st.sampled_from(["x", "y"]), ttl_s=st.sampled_from([3.0, 20.0]))
    def pin(self, number: int, node: tuple[int, int], owner: str, ttl_s: float) -> None:
        scope, keys = self.session(number).scope, chain(number, node)
        num_in_memory = self.store.lookup(scope, keys)[1]
        num_pinned = self.store.pin(scope, owner, keys, ttl_s)
        most = int(0.5 * self.store.arena.capacity_bytes)
        for each in keys[:num_pinned]:
            self.pins[SCOPE_OF_SESSION[number], owner, each] = self.now_s + ttl_s
        pinned = sum(SCOPES[scope][0] == SCOPES[SCOPE_OF_SESSION[number]][0] for scope, _, _ in self.pins)
        assert num_pinned <= num_in_memory
        assert pinned * BLOCK_BYTES <= most
        assert num_pinned == num_in_memory or (pinned + 1) * BLOCK_BYTES > most

    @rule(number=SESSIONS, node=NODES, owner=st.sampled_from(["x", "y"]), everything=st.booleans())
    def unpin(self, number: int, node: tuple[int, int], owner: str, everything: bool) -> None:
        scope = SCOPE_OF_SESSION[number]
        keys = [] if everything else chain(number, node)
        held = {pin for pin in self.pins if pin[:2] == (scope, owner) and (everything or pin[2] in keys)}
        assert self.store.pins.unpin(self.session(number).scope, owner, keys) == len(held)
        self.pins = {pin: until_s for pin, until_s in self.pins.items() if pin not in held}

    @rule(seconds=st.sampled_from([5.0, 9.0]))
    def grow_old(self, seconds: float) -> None:
        self.pass_time(seconds)
        index = self.store.index
        if not self.ttl_s:
            return
        for row in index.in_order():
            is_kept = index.num_leases[row] or index.num_pins[row] or index.num_memory_children[row]
            is_old = index.last_used_s[row] <= index.now_s - self.ttl_s
            assert not is_old or is_kept or index.has_children(row)

    @rule(tenant=st.sampled_from(["", "a", "b"]))
    def list_everything(self, tenant: str) -> None:
        listed = {
            block.key: block
            for part in asyncio.run(collect(list_blocks(self.store, tenant, 0)))
            for block in part.blocks
        }
        index = self.store.index
        rows = {index.key(row): row for row in index.in_order()}
        expected = {each for each in rows if not tenant or SCOPES[self.written[each]][0] == tenant}
        assert set(listed) == expected
        for each, block in listed.items():
            assert (block.tenant, block.fingerprint) == SCOPES[self.written[each]]
            assert block.in_memory == (index.slot[rows[each]] != NO_SLOT)
            assert block.on_disk == index.on_disk[rows[each]]

    @rule(number=SESSIONS, node=NODES, is_flipped=st.booleans())
    def verify(self, number: int, node: tuple[int, int], is_flipped: bool) -> None:
        self.settle()
        index, flipped = self.store.index, 0
        row = index.find(chain(number, (node[0], 0))[-1])
        gone: set[bytes] = set()
        if is_flipped and row and index.slot[row] != NO_SLOT:
            view = self.store.arena.view(index.slot[row], BLOCK_BYTES)
            view[100] ^= 4
            flipped, gone = 1, {index.key(each) for each in index.subtree(row)}
        with ThreadPoolExecutor(1) as readers:
            progress = asyncio.run(collect(verify_blocks(self.store, readers, "", 1 << 40)))[-1]
        self.hear()
        assert progress.done
        assert progress.num_wrong == flipped or not self.is_trusted
        assert not any(index.find(each) for each in gone)
        known = {pin[2] for pin in self.pins} | {lease[1] for lease in self.leases}
        self.forget({each for each in known if not index.find(each)})

    @rule()
    def drain(self) -> None:
        for number in list(self.sessions):
            self.abandon(number)
        last = asyncio.run(self.hearing(collect(drain_store(self.store, 20.0))))[-1]
        index = self.store.index
        left = [row for row in index.in_order() if not index.on_disk[row]]
        assert last.done
        assert last.num_unwritten == len(left)
        assert bool(last.problem) == bool(left)
        assert not left or self.disk_quota_bytes == DISK_QUOTA_BYTES or not self.is_trusted
        self.store.draining = False
        self.synced = {index.key(row) for row in index.in_order() if index.on_disk[row]}

    @precondition(lambda self: self.num_steps > 1)
    @rule(how=st.sampled_from(["end", "kill", "power cut"]), seed=SEEDS)
    def restart(self, how: str, seed: int) -> None:
        """Another process: what was on disk is there again, as far as it was promised; nothing is wrong."""
        self.num_steps = 0
        index = self.store.index
        acknowledged = {index.key(row) for row in index.in_order() if index.on_disk[row]}
        if how == "end":
            self.end_store()
            self.files = self.files.after_kill()
        else:
            self.files.freeze()
            files = self.files.after_kill() if how == "kill" else self.files.after_power_cut(seed)
            self.end_store()
            self.files = files
        expected = acknowledged & self.synced if how == "power cut" else acknowledged
        self.store = self.make_store()
        self.open_disk()
        self.begin_watching()
        index = self.store.index
        found = {index.key(row) for row in index.in_order()}
        assert found <= set(self.written)
        assert not self.is_trusted or expected <= found
        self.synced &= found
        self.found_bytes = {tenant: disk_bytes_of(self.store, tenant) for tenant in ("a", "b")}

    def end_store(self) -> None:
        self.store.close()
        self.sessions.clear()
        self.reserved.clear()
        self.leases.clear()
        self.pins.clear()
        self.reads.clear()

    @precondition(lambda self: self.is_trusted)
    @rule(seed=SEEDS)
    def flip_a_bit_on_disk(self, seed: int) -> None:
        self.settle()
        self.files.flip(seed)
        self.is_trusted = False

    @rule(number=SESSIONS)
    def read_everything(self, number: int) -> None:
        """Every chain of a scope, from disk if need be: each block is right, or not there."""
        self.settle()
        for node in range(8, 16):
            session, keys = self.session(number), chain(number, (node, 0))
            self.reads += self.store.start_prefetch(session.scope, keys)
            self.settle()
            leased, num_visible = self.store.acquire(session, keys)
            assert num_visible == len(leased) or not self.is_trusted or self.store.counters["refused_no_space"]
            for each, lease in zip(keys, leased, strict=False):
                assert self.read(lease) == payload(SCOPE_OF_SESSION[number], each)
            self.store.release(session, keys[: len(leased)])

    async def hearing(self, doing: Any) -> Any:
        """Lets the store hear the disk while something else goes on."""
        task = asyncio.ensure_future(doing)
        while not task.done():
            self.hear()
            await asyncio.wait([task], timeout=0.002)
        return task.result()

    def teardown(self) -> None:
        if hasattr(self, "files"):
            self.files.freeze()
        super().teardown()


async def collect(stream: AsyncIterator[_T]) -> list[_T]:
    return [each async for each in stream]


StoreLives.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestStoreLives: Any = StoreLives.TestCase
