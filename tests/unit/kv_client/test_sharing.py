"""Tenants share the arena, and never each other's memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.kv_client import KvClient
from shoal.kv_store.store import Store, StoreLimits
from support.kv_store_running import BLOCK_BYTES, ROOT, RunningStore, key, payload, running_store


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0  # every look is later than any pause between two attempts
        return self.now_s


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningStore]:
    limits = StoreLimits(lease_timeout_s=1e6)
    with running_store(tmp_path, num_blocks=32, limits=limits, clock=Clock()) as running:
        yield running


def put(client: KvClient, first: int, num: int) -> int:
    keys = [key(number) for number in range(first, first + num)]
    payloads = [payload(number) for number in range(first, first + num)]
    return client.put(keys, payloads, parent_key=ROOT, namespace_key=ROOT).num_visible


def num_right(client: KvClient, first: int, num: int) -> int:
    buffers = [bytearray(BLOCK_BYTES) for _ in range(num)]
    found = client.get([key(number) for number in range(first, first + num)], buffers)
    assert all(bytes(buffers[at]) == payload(first + at) for at in range(found))
    return found


def chunks(store: Store) -> dict[str, int]:
    return {pool.tenant: len(pool.chunks) for pool in store.arena.pools}


def test_a_tenant_that_comes_late_gets_its_share(running: RunningStore) -> None:
    one, two = running.client(), running.client(tenant="b")
    assert put(one, 100, 32) == 32
    assert put(two, 200, 16) == 16
    assert running.do(chunks) == {"a": 2, "b": 2}
    assert num_right(two, 200, 16) == 16
    assert num_right(one, 100, 32) == 16
    assert put(two, 300, 16) == 16  # in place of its own
    assert running.do(chunks) == {"a": 2, "b": 2}
    assert num_right(one, 100, 32) == 16
    one.close()
    two.close()


def test_memory_that_a_client_maps_is_not_counted_as_free_before_it_is_unmapped(running: RunningStore) -> None:
    one, two = running.client(), running.client(tenant="b")
    assert put(one, 100, 32) == 32
    assert num_right(one, 100, 32) == 32
    assert put(two, 200, 8) == 0  # the chunk is cleared, and still mapped by the other client
    assert running.do(lambda store: store.arena.num_taken_bytes) == running.store.arena.capacity_bytes
    assert num_right(one, 100, 32) < 32  # the client learns of it, and unmaps
    assert put(two, 200, 8) == 8
    one.close()
    two.close()


def test_clients_that_do_not_unmap_lose_their_session(running: RunningStore) -> None:
    one, two = running.client(), running.client(tenant="b")
    assert put(one, 100, 32) == 32
    assert num_right(one, 100, 32) == 32
    put(two, 200, 8)

    def look_later(store: Store) -> int:
        clock = store.clock
        assert isinstance(clock, Clock)
        clock.now_s += 2e6
        late = store.expire()
        for session in late:
            running.server.end_session(session)
        return len(late)

    assert running.do(look_later) == 1
    assert put(two, 200, 8) == 8
    assert num_right(one, 100, 4) == 0  # finds its session gone, and opens another
    assert num_right(one, 100, 4) == 4
    one.close()
    two.close()


def test_a_leased_chunk_stays(running: RunningStore) -> None:
    one, two = running.client(), running.client(tenant="b")
    assert put(one, 100, 32) == 32
    lease = one.view([key(number) for number in range(100, 132)])
    assert len(lease) == 32
    assert put(two, 200, 8) == 0
    assert lease.count_valid() == 32
    lease.close()
    one.close()
    two.close()


def test_memory_of_blocks_that_were_removed_goes_to_others(running: RunningStore) -> None:
    one, two = running.client(), running.client(tenant="b")
    assert put(one, 100, 32) == 32
    assert one.evict([key(100)]) == 32
    assert put(two, 200, 32) == 32
    assert running.do(chunks) == {"a": 0, "b": 4}
    one.close()
    two.close()
