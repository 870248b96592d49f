"""Workers that fall silent, lie about their caches, or are not those that Envoy chose: what the gateway believes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from shoal.api.gateway.v1 import explain_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import block_keys, namespace_key
from shoal.rpc.errors import WorkerFailed
from support.eventually import eventually
from support.failover_mesh import SIMULATED, failover_mesh
from support.fake_worker import FakeWorker, Reply, info
from support.gateway_running import RunningGateway, run_gateway, write_workers

PROMPT = "sixteen letters!"
KEYS = block_keys(namespace_key("d1" * 32, "fake-v1"), list(PROMPT.encode()), 4)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"shoal_gateway_{name}", labels) or 0.0


def stored(seq: int, keys: list[bytes]) -> worker_pb2.SubscribeKvEventsResponse:
    event = worker_pb2.KvStored(keys=keys, tier=worker_pb2.TIER_DEVICE)
    return worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=seq, stored=event)


@asynccontextmanager
async def gateway_of(path: Path, worker: FakeWorker, **settings: Any) -> AsyncIterator[RunningGateway]:
    """A gateway that follows `worker` by the file, as in a mesh."""
    file = path / "workers.json"
    async with run_gateway(worker, wait=False, workers_file=str(file), **settings) as running:
        write_workers(file, [worker.address])
        await eventually(lambda: running.gateway.index.workers == {worker.address}, "the cache is known")
        await eventually(lambda: not running.gateway.not_ready(), "the gateway is ready")
        yield running


async def test_a_worker_whose_open_stream_is_silent_counts_as_cacheless(tmp_path: Path) -> None:
    worker = FakeWorker(info(kv_heartbeat_ms=20))
    async with gateway_of(tmp_path, worker, kv_event_silence_s=0.4) as running:
        index, address = running.gateway.index, worker.address
        worker.publish(stored(1, KEYS))
        await eventually(lambda: index.match(KEYS) == {address: 4}, "the event arrived")
        for _ in range(8):  # heartbeats hold the knowledge for longer than the limit
            worker.publish(worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=1))
            await asyncio.sleep(0.1)
            assert index.match(KEYS) == {address: 4}
        worker.has_snapshot = False  # from here on nothing comes at all
        await eventually(lambda: not index.knows(address), "nothing is believed")
        assert running.gateway.fleet.any_ready
        assert sample("kv_resyncs_total", worker=address, reason="silent") == 1
        await eventually(lambda: sample("workers_without_kv_events") == 1, "it is reported")
        assert sample("kv_event_age_seconds", worker=address) > 0.3
        await eventually(lambda: len(worker.subscriptions) >= 3, "it is asked again and again")
        assert sample("kv_resyncs_total", worker=address, reason="silent") == 1
        worker.has_snapshot = True
        await eventually(lambda: index.knows(address), "it is heard again")
        await eventually(lambda: sample("workers_without_kv_events") == 0, "and that is reported too")


async def test_a_worker_without_heartbeats_may_be_silent(tmp_path: Path) -> None:
    worker = FakeWorker()
    async with gateway_of(tmp_path, worker, kv_event_silence_s=0.08) as running:
        await asyncio.sleep(0.5)
        assert running.gateway.index.knows(worker.address)


async def test_a_lying_worker_shows_as_drift(tmp_path: Path) -> None:
    worker = FakeWorker()
    worker.replies[0] = Reply(cached_tokens=4)
    async with gateway_of(tmp_path, worker) as running:
        address = worker.address
        worker.publish(stored(1, KEYS))
        await eventually(lambda: running.gateway.index.match(KEYS) == {address: 4}, "the lie was believed")
        for _ in range(3):
            await running.generate(text=PROMPT)
    assert sample("worker_predicted_cached_tokens_total", worker=address) == 3 * 12
    assert sample("worker_cached_tokens_total", worker=address) == 3 * 4
    assert sample("worker_hit_drift_tokens_bucket", worker=address, le="0.0") == 0
    assert sample("worker_hit_drift_tokens_bucket", worker=address, le="64.0") == 3


async def test_what_was_expected_where_envoy_did_not_go_is_withdrawn(tmp_path: Path) -> None:
    worker, elsewhere = FakeWorker(), "10.0.0.9:1"
    worker.replies[0] = Reply(served_by=elsewhere, cached_tokens=0)
    async with gateway_of(tmp_path, worker) as running:
        index = running.gateway.index
        index.store(elsewhere, [])
        await running.generate(text=PROMPT, request_id="moved-by-envoy")
        assert index.match(KEYS) == {elsewhere: 4}
        [found] = (await running.stub.Explain(explain_pb2.ExplainRequest(request_id="moved-by-envoy"))).explanations
    [attempt] = found.attempts
    assert (attempt.elsewhere, attempt.worker, list(attempt.endpoints)) == (True, elsewhere, [worker.address])


async def test_what_was_expected_of_a_worker_that_refused_is_withdrawn(tmp_path: Path) -> None:
    worker = FakeWorker()
    worker.replies[0] = Reply(fail=WorkerFailed("the engine is gone"))
    async with gateway_of(tmp_path, worker, max_moves=0) as running:
        with pytest.raises(Exception, match="the engine is gone"):
            await running.generate(text=PROMPT)
        assert running.gateway.index.match(KEYS) == {}


async def test_a_stopped_worker_process_is_noticed_before_its_connection_breaks(tmp_path: Path) -> None:
    async with failover_mesh(tmp_path, 2, *SIMULATED, kv_event_silence_s=1.6) as mesh:
        index = mesh.running.gateway.index
        await eventually(lambda: index.workers == set(mesh.workers), "both caches are known")
        address = sorted(mesh.workers)[0]
        mesh.workers[address].signal(signal.SIGSTOP)
        await eventually(lambda: not index.knows(address), "nothing is believed of the stopped one", 8.0)
        assert sample("kv_resyncs_total", worker=address, reason="silent") == 1
        mesh.workers[address].signal(signal.SIGCONT)
        await eventually(lambda: index.knows(address), "it is heard again")
        assert index.knows(sorted(mesh.workers)[1])
