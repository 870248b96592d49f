"""kill -9 of a client, in the middle of what it does: what it held is free at once, and nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.checksum import crc32c_at
from shoal.kv_store.store import Store
from support.eventually import wait_until
from support.kv_client_process import client_process
from support.kv_store_running import BLOCK_BYTES, ROOT, RunningStore, key, payload, running_store

NUMBERS = [1, 2, 3, 4]
KEYS = [key(number) for number in NUMBERS]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path, num_blocks=16) as running:
        yield running


def put_all(running: RunningStore) -> None:
    client = running.client()
    payloads = [payload(number) for number in NUMBERS]
    assert client.put(KEYS, payloads, parent_key=ROOT, namespace_key=ROOT).num_visible == 4
    client.close()
    wait_until(lambda: num_sessions(running) == 0, "the writer's session ends")


def num_sessions(running: RunningStore) -> int:
    return running.do(lambda store: len(store.sessions))


def check_all(store: Store) -> None:
    for row in store.index.in_order():
        assert crc32c_at(store.arena.address(store.index.slot[row]), BLOCK_BYTES) == store.index.checksum[row]
    assert len(store.writing) == 0
    assert sum(pool.num_used for pool in store.arena.pools) == len(store.index)


@pytest.mark.parametrize("doing", ["holding", "reading"])
def test_leases_end_with_their_client(running: RunningStore, doing: str) -> None:
    put_all(running)
    with client_process(running.path, doing) as process:
        if doing == "holding":
            assert running.do(lambda store: sum(store.index.num_leases)) == 4
        process.kill()
        wait_until(lambda: num_sessions(running) == 0, "the killed client's session ends")
    assert running.do(lambda store: sum(store.index.num_leases)) == 0
    client = running.client()
    assert client.evict(KEYS[:1]) == 4
    client.close()


def test_reservations_end_with_their_client(running: RunningStore) -> None:
    with client_process(running.path, "reserving") as process:
        client = running.client()
        assert client.put(KEYS[:1], [payload(1)], parent_key=ROOT, namespace_key=ROOT).num_visible == 0
        process.kill()
        wait_until(lambda: num_sessions(running) == 1, "the killed client's session ends")
    running.do(check_all)
    assert client.put(KEYS[:1], [payload(1)], parent_key=ROOT, namespace_key=ROOT).num_stored == 1
    client.close()


def test_what_a_killed_writer_published_is_whole(running: RunningStore) -> None:
    for _ in range(3):
        with client_process(running.path, "writing") as process:
            process.kill()
            wait_until(lambda: num_sessions(running) == 0, "the killed client's session ends")
        running.do(check_all)
        running.do(lambda store: store.removal.evict(next(iter(store.scopes._by_name.values())), []))
        assert running.do(lambda store: store.arena.num_used_bytes) == 0
