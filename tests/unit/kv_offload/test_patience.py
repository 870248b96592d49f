"""When blocks are stored: not while a CPU computes, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine_requests import exactly, make_request
from support.eventually import wait_until
from support.kv_store_running import RunningStore, num_stored, running_store
from support.offload_harness import OffloadHarness, offloading

PROMPT = range(42)
NUM_FULL = 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path) as running:
        yield running


def compute(h: OffloadHarness, stream_id: int = 1, start: int = 0) -> None:
    h.run(make_request(stream_id, [start + token for token in PROMPT], sampling=exactly(1)))


def test_blocks_wait_until_nothing_is_computed(store: RunningStore) -> None:
    with offloading(store, write_patience_s=1000.0) as h:
        compute(h)
        assert h.offload.writer.num_queued_blocks == NUM_FULL
        assert not num_stored(store)
        h.offload.rest()
        wait_until(lambda: not h.offload.writer.num_queued_blocks, "they are stored")
        assert num_stored(store) == NUM_FULL


def test_they_wait_no_longer_than_the_patience(store: RunningStore) -> None:
    with offloading(store, write_patience_s=0.05) as h:
        compute(h)
        wait_until(lambda: not h.offload.writer.num_queued_blocks, "they are stored")
        assert num_stored(store) == NUM_FULL


def test_the_device_does_not_give_up_blocks_that_wait(store: RunningStore) -> None:
    with offloading(store, {"num_blocks": 24}, write_patience_s=1000.0) as h:
        compute(h)
        compute(h, 2, 100)  # the first ones are next to be given up
        wait_until(lambda: not h.offload.writer.num_queued_blocks, "nothing waits any more")
        assert num_stored(store) == 2 * NUM_FULL
        assert not h.offload.stats.dropped_blocks
