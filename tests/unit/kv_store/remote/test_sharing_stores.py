"""Stores that find each other's blocks: real ones, on addresses of their own."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from shoal.kv_store.remote.rendezvous import anchors, rank
from support.eventually import wait_until
from support.kv_peers_running import add_store, black_hole, chain, sharing_stores


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
def test_blocks_of_another_store_are_found_and_brought(tmp_path: Path, transport: str) -> None:
    with sharing_stores(tmp_path, 2, transport=transport) as stores:
        keys = chain(1, 20)
        stores[0].put(keys)
        assert stores[1].locate([*keys, *chain(2, 1)]) == 20
        assert stores[1].pull(keys) == 20
        wait_until(lambda: stores[0].counter("peer_blocks_sent") >= 20, "what was sent is counted")
        assert stores[1].counter("peer_pulled") == 20


def test_a_chain_that_is_here_in_part_is_completed(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 2, offer_delay_s=60.0) as stores:
        keys = chain(1, 20)
        stores[0].put(keys)
        stores[1].put(keys[:7])
        assert stores[1].pull(keys) == 20
        assert stores[1].counter("peer_pulled") == 13


def test_the_client_finds_and_prefetches_what_others_have(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 2, offer_delay_s=60.0) as stores:
        keys = chain(1, 9)
        stores[0].put(keys)
        client = stores[1].running.client()
        try:
            assert client.lookup(keys) == (0, 0)
            assert client.locate(keys, peers_timeout_s=1.0) == (0, 0, 9, True)
            assert client.prefetch(keys, timeout_s=5.0) == 9
            assert client.locate(keys, peers_timeout_s=1.0) == (9, 9, 9, False)
        finally:
            client.close()


def test_a_client_that_has_the_beginning_asks_for_the_rest(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 4, num_replicas=1) as stores:
        keys = chain(1, 20)
        hosts = [store.address for store in stores.stores]
        owner = stores.stores[hosts.index(rank(anchors(keys)[0], hosts, 1)[0])]
        others = [store for store in stores.stores if store is not owner]
        others[0].put(keys)
        wait_until(lambda: owner.get(keys) == 20, "the owner has it")
        others[0].stop()
        client = others[1].running.client()
        try:
            assert client.locate(keys[18:], 5.0, leading=keys[:18]).num_with_peers == 2
            assert client.prefetch(keys[18:], 5.0, leading=keys[:18]) == 2
            assert client.lookup(keys) == (20, 20), "those before them came as well"
            assert client.locate([], 1.0) == (0, 0, 0, False)
            assert client.prefetch([], 1.0) == 0
            assert client.problem == ""
        finally:
            client.close()


def test_what_is_stored_goes_to_the_store_that_it_belongs_to(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 3) as stores:
        hosts = [store.address for store in stores.stores]
        chains = [chain(name, 6) for name in range(1, 7)]
        for keys in chains:
            stores[0].put(keys)
        for keys in chains:
            owner = next(s for s in stores.stores if s.address == rank(anchors(keys)[0], hosts, 1)[0])
            wait_until(lambda owner=owner, keys=keys: owner.get(keys) == 6, "the owner has it")  # type: ignore[misc]
        assert stores[0].counter("offers_taken") >= 1
        assert stores[0].num_blocks() == 36


def test_a_hot_chain_is_held_by_its_replicas(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 3, hot_calls=4) as stores:
        hosts = [store.address for store in stores.stores]
        keys = chain(1, 6)
        first, second = (stores.stores[hosts.index(host)] for host in rank(anchors(keys)[0], hosts, 2))
        asking = next(store for store in stores.stores if store not in (first, second))
        first.put(keys)
        for _ in range(3):
            assert asking.locate(keys) == 6
        assert second.num_blocks() == 0
        for _ in range(3):
            assert asking.locate(keys) == 6
        wait_until(lambda: second.get(keys) == 6, "the second one has it as well")
        first.stop()
        assert asking.pull(keys) == 6


def test_tenants_and_fingerprints_are_kept_apart(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 2, offer_delay_s=60.0) as stores:
        keys = chain(1, 5)
        stores[0].put(keys, tenant="a")
        stores[0].open_scope("b")
        assert stores[1].locate(keys, tenant="b") == 0
        assert stores[1].pull(keys, tenant="b") == 0
        assert stores[1].pull(keys, tenant="a") == 5
        assert stores[1].get(keys, tenant="b") == 0


def test_the_old_owner_is_found_after_a_store_came(tmp_path: Path) -> None:
    with contextlib.ExitStack() as ending:
        stores = ending.enter_context(sharing_stores(tmp_path, 2))
        chains = [chain(name, 5) for name in range(1, 9)]
        for keys in chains:
            stores[0].put(keys)
        stores.write_list()
        wait_until(lambda: len(stores[0].exchange.outbox) == 0, "everything was offered")
        late = add_store(stores, ending, 2)
        stores.write_list()
        assert [late.pull(keys) for keys in chains] == [5] * 8


def test_a_store_that_left_is_not_asked(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 2) as stores:
        stores[0].put(chain(1, 5))
        stores.write_list(without=[stores[0].address])
        assert stores[1].locate(chain(1, 5)) == 0
        assert stores[1].exchange.peers == []


def test_a_dead_store_costs_hits_and_no_time(tmp_path: Path) -> None:
    with sharing_stores(tmp_path, 2) as stores:
        stores[0].put(chain(1, 5))
        stores[0].stop()
        start_s = time.monotonic()
        for _ in range(5):
            assert stores[1].pull(chain(1, 5), timeout_s=5.0) == 0
        assert time.monotonic() - start_s < 5.0
        [peer] = stores[1].do(stores[1].exchange.describe)
        assert peer.problem
        assert peer.num_failures >= 3
        assert stores[1].counter("peer_failures") >= 3


def test_a_store_that_never_answers_costs_its_deadline_at_most(tmp_path: Path) -> None:
    with black_hole("127.0.0.9") as address, sharing_stores(tmp_path, 1, call_timeout_s=0.3) as stores:
        stores.write_list(address)
        times = []
        for name in range(6):
            start_s = time.monotonic()
            assert stores[0].pull(chain(name, 3), timeout_s=10.0) == 0
            times.append(time.monotonic() - start_s)
        assert max(times) < 3.0
        [peer] = stores[0].do(stores[0].exchange.describe)
        assert peer.problem
        assert peer.num_failures < 6, "calls go on although none was answered"


def test_a_live_replica_answers_for_a_black_hole(tmp_path: Path) -> None:
    settings = {"call_timeout_s": 1.0, "num_replicas": 3}
    with black_hole("127.0.0.9") as address, sharing_stores(tmp_path, 2, **settings) as stores:
        stores.write_list(address)
        stores[0].put(chain(1, 4))
        assert stores[1].pull(chain(1, 4), timeout_s=10.0) == 4
