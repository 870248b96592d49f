"""Following: no event is missed, told twice, or out of order, however late a follower is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.lora_registry.events import Batch, EventLog
from shoal.lora_registry.store import AdapterStore, StoreLimits
from support.adapters import write_adapter


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / str(seed), seed=seed) for seed in range(2)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    with closing(AdapterStore(tmp_path, StoreLimits(max_bytes=1 << 20, max_adapter_bytes=1 << 20))) as opened:
        yield opened


async def take(log: EventLog, epoch: int = 0, revision: int = 0) -> Batch:
    """The first one that is told."""
    async with aclosing(log.follow(epoch, revision)) as batches:
        async with asyncio.timeout(5):
            return await anext(batches)


async def test_a_follower_that_comes_back_gets_what_it_missed(store: AdapterStore, adapters: list[Path]) -> None:
    store.publish("old", adapters[0], "")
    log = EventLog(store, buffer=4)
    assert (log.revision, [event.name for event in (await take(log)).events]) == (1, ["old"])
    for name in ("a", "b", "c"):
        store.publish(name, adapters[0], "")
        log.note(name)
        log.note(name)  # nothing is different
    missed = await take(log, log.epoch, 2)
    assert (missed.revision, missed.is_snapshot, [event.name for event in missed.events]) == (4, False, ["b", "c"])
    for name in ("a", "old"):
        store.remove(name)
        log.note(name)
    assert (await take(log, log.epoch, 2)).is_snapshot is False, "the buffer has four"
    late = await take(log, log.epoch, 1)
    assert (late.is_snapshot, [event.name for event in late.events]) == (True, ["b", "c"])
    for epoch, revision in ((log.epoch, 7), (log.epoch + 2, 3), (0, 0)):
        assert (await take(log, epoch, revision)).is_snapshot


async def test_silence_is_told_too(store: AdapterStore) -> None:
    log = EventLog(store, buffer=4, heartbeat_s=0.01)
    async with aclosing(log.follow(log.epoch, 0)) as batches:
        assert await anext(batches) == Batch(0, False, ())
        assert await anext(batches) == Batch(0, False, ())
    log.close()
    assert [batch async for batch in log.follow(0, 0)] == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1)), max_size=12), reads=st.data())
async def test_a_follower_always_knows_what_is_there(
    adapters: list[Path], tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], reads: st.DataObject
) -> None:
    """It reads when it likes, leaves, comes back, and ends with the names that the store has."""
    limits = StoreLimits(max_bytes=1 << 20, max_adapter_bytes=1 << 20)
    with closing(AdapterStore(tmp_path_factory.mktemp("store"), limits)) as store:
        log = EventLog(store, buffer=3, heartbeat_s=0.001)
        known: dict[str, int] = {}
        epoch = revision = 0

        async def read() -> None:
            nonlocal known, epoch, revision
            batch = await take(log, epoch, revision)
            if batch.is_snapshot:
                known = {}
            else:
                assert batch.revision - revision == len(batch.events)
            known.update({event.name: event.version for event in batch.events})
            epoch, revision = log.epoch, batch.revision

        for name, adapter in steps:
            if adapter < 0:
                store.remove(name)
            else:
                store.publish(name, adapters[adapter], "")
            log.note(name)
            if reads.draw(st.booleans()):
                await read()
        await read()
        present = {record.name: record.current for record in store.names()}
        assert {name: version for name, version in known.items() if version} == present
