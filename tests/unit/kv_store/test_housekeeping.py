"""What a store does over and over goes on after a failure, and the failure is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_store import process
from shoal.kv_store.config import KvStoreConfig
from shoal.kv_store.control import Control
from shoal.kv_store.counters import Counters
from shoal.kv_store.housekeeping import Housekeeping
from shoal.kv_store.metrics import StoreCollector
from shoal.kv_store.tenants import Caller
from support.eventually import eventually


async def test_a_failure_is_told_and_the_task_goes_on() -> None:
    counters = Counters()
    keeping, failing, num_done = Housekeeping(counters), [True], [0]

    async def work() -> None:
        if failing[0]:
            raise ValueError("no luck")
        num_done[0] += 1

    task = asyncio.create_task(keeping.repeat("luck", 0.001, work))
    await eventually(lambda: counters["housekeeping_failures"] >= 3, "it goes on trying")
    assert keeping.problems == ["luck: ValueError: no luck"]
    failing[0] = False
    await eventually(lambda: num_done[0] > 0, "it works again")
    assert keeping.problems == []
    task.cancel()


async def test_leases_still_expire_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One exception in the store's own housekeeping must not be the end of it."""
    monkeypatch.setattr(process, "EXPIRE_EVERY_S", 0.01)
    sizes = {"memory_bytes": 1 << 20, "chunk_bytes": 1 << 18, "huge_pages": "off"}
    config = KvStoreConfig(socket_path=str(tmp_path / "kv.sock"), **sizes)  # type: ignore[arg-type]
    async with asyncio.timeout(20), process.open_control(config) as control:
        expire, fails = control.store.expire, [True]
        monkeypatch.setattr(control.store, "expire", lambda: explode() if fails[0] else expire())
        await eventually(lambda: control.store.counters["housekeeping_failures"] > 0, "the failure is counted")
        assert stats(control).problems == ["expiry: RuntimeError: a bug"]
        assert value(control, "shoal_kv_store_problems") == 1
        before = control.store.index.now_s
        fails[0] = False
        control.store._started_s -= 100
        await eventually(lambda: control.store.index.now_s > before + 50, "house is kept again")
        assert list(stats(control).problems) == []
        assert value(control, "shoal_kv_store_events_total", event="housekeeping_failures") > 0


def explode() -> None:
    raise RuntimeError("a bug")


def stats(control: Control) -> pb.StatsResponse:
    return control.stats(pb.StatsRequest(), Caller(""))


def value(control: Control, name: str, **labels: str) -> float:
    registry = CollectorRegistry()
    registry.register(StoreCollector(control.store))
    found = registry.get_sample_value(name, labels)
    assert found is not None
    return found
