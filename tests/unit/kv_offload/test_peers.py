"""Blocks that another host's store has: found, priced and loaded by way of the node's own store, or computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoal.kv_client import KvClientOptions
from shoal.model_worker.kv_offload.options import OffloadOptions
from shoal.model_worker.kv_offload.prefill_rate import PrefillRate
from shoal.model_worker.kv_offload.retrieving import Retrieving
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.kv_offload.ticket import Stage, Ticket
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from support.engine_requests import exactly, make_request
from support.eventually import wait_until
from support.kv_peers_running import SharingStores, sharing_stores
from support.offload_harness import OffloadHarness, offloading

PROMPT = list(range(42))
NUM_FULL = 40


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[SharingStores]:
    # Nothing is offered: blocks stay where they were computed until somebody asks for them.
    with sharing_stores(tmp_path, 2, offer_delay_s=3600.0) as running:
        yield running


def ask(h: OffloadHarness, stream_id: int = 1, prompt: list[int] | None = None) -> int:
    return h.run(make_request(stream_id, prompt or PROMPT, sampling=exactly(2)))


def test_what_a_worker_of_another_host_computed_is_loaded(stores: SharingStores) -> None:
    # What loading from a peer is expected to take, at first: 10 ms. Computing the prompt: 42.
    with (
        offloading(stores[0].running) as first,
        offloading(stores[1].running, peers_wait_s=1.0, tokens_per_s=100.0) as second,
    ):
        assert ask(first) == 0
        first.flush()
        assert ask(second) == NUM_FULL, second.offload.stats
        assert second.offload.stats.loaded_blocks == {"peer": 10}
        assert stores[1].num_blocks() >= 10, "the node's own store has them as well"
        second.cache.clear()
        assert ask(second, 2) == NUM_FULL
        assert second.offload.stats.loaded_blocks == {"peer": 10, "memory": 10}


def test_a_chain_that_the_device_has_the_beginning_of_goes_on_at_a_peer(stores: SharingStores) -> None:
    with (
        offloading(stores[0].running) as first,
        offloading(stores[1].running, peers_wait_s=1.0, tokens_per_s=100.0, write_back="off") as second,
    ):
        ask(first)
        first.flush()
        assert ask(second, 1, [*PROMPT[:18], 99]) == 16
        assert second.offload.stats.loaded_blocks == {"peer": 4}
        assert ask(second, 2) == NUM_FULL
        assert second.offload.stats.loaded_blocks == {"peer": 10}


class AnsweringReader:
    """Says what the store and others have, and how long that took."""

    problem = ""

    def __init__(self) -> None:
        self.posted: list[Ticket] = []

    def may_begin(self, tenant: str, key: bytes) -> bool:
        return True

    def unanswered_s(self, now_s: float) -> float:
        return 0.0

    def post(self, ticket: Ticket) -> None:
        self.posted.append(ticket)
        ticket.asked_peers = ticket.peers_wait_s > 0
        ticket.num_visible = ticket.num_with_peers = ticket.num_in_memory = ticket.num_found_in_memory = 0
        ticket.answered_s = ticket.asked_s + (4e-3 if ticket.asked_peers else 0.1e-3)
        ticket.stage = Stage.ANSWERED


def test_peers_are_not_asked_where_that_costs_more_than_what_they_have_saves() -> None:
    client = KvClientOptions(socket_path="", tenant="", fingerprint=b"f", block_bytes=32)
    reader, memory = AnsweringReader(), CpuKvMemory(torch.zeros(4, 8))
    rate, stats = PrefillRate(1000.0), KvStoreStats()
    options = OffloadOptions(client=client)
    retrieving = Retrieving(options, memory, 4, rate, stats, reader, None)  # type: ignore[arg-type]
    for number in range(100):  # 100 ms each to compute
        ticket = retrieving.ask("a", [bytes(16)] * 25, 0, float(number))
        assert ticket is not None
        retrieving.settled(ticket)
        retrieving.advance()
    asked = [ticket.peers_wait_s > 0 for ticket in reader.posted]
    assert all(asked[:10])
    assert sum(asked[50:]) <= 5, "what others have on average, a hundredth at least, saves less than asking takes"
    assert len(asked) == 100, "the node's own store is asked every time"


def test_a_peer_that_dies_costs_hits_only(stores: SharingStores) -> None:
    with (
        offloading(stores[0].running) as first,
        offloading(stores[1].running, peers_wait_s=0.2, tokens_per_s=100.0) as second,
    ):
        ask(first)
        first.flush()
        stores[0].stop()
        start_s = time.monotonic()
        assert ask(second) == 0
        assert ask(second, 2, [7, *PROMPT]) == 0
        assert time.monotonic() - start_s < 5.0
        second.flush()
        wait_until(lambda: stores[1].num_blocks() >= 20, "the node's own store goes on", 10)
        assert second.offload.stats.problem == ""
