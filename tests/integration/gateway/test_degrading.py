"""What the gateway cannot know, Envoy decides by the load that workers report: everything that is known is broken."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import block_keys, namespace_key
from shoal.operator.envoy import Endpoint
from support.envoy_running import RunningEnvoy, running_envoy
from support.eventually import eventually
from support.fake_endpoints import FakeEndpoint
from support.fake_worker import FakeWorker, info, serve_fakes
from support.gateway_running import RunningGateway, run_gateway, write_workers

SILENCE_S = 0.4
PROMPT = list(range(1, 41))
KEYS = block_keys(namespace_key("d1" * 32, "fake-v1"), PROMPT, 4)


@dataclass
class Mesh:
    """Three workers of which the first is idle and the others are busy, by what they report to Envoy."""

    workers: list[FakeWorker]
    reports: list[FakeEndpoint]
    envoy: RunningEnvoy
    gateway: RunningGateway

    async def ask(self, count: int) -> Counter[int]:
        """Who answers the same prompt, asked one after the other."""
        before = [len(worker.calls) for worker in self.workers]
        for _ in range(count):
            sampling = generation_pb2.SamplingParams(max_tokens=2)
            await self.gateway.generate(tokens=gateway_pb2.TokenPrompt(ids=PROMPT), sampling=sampling)
        calls = [len(worker.calls) - n for worker, n in zip(self.workers, before, strict=True)]
        return Counter({i: n for i, n in enumerate(calls) if n})

    async def falls_back(self) -> None:
        """Waits until calls carry no pin, and go where there is room."""

        async def follows_load() -> bool:
            for worker in self.workers:
                worker.calls.clear()
            answered = await self.ask(20)
            is_pinned = any("x-shoal-endpoint" in call.metadata for worker in self.workers for call in worker.calls)
            return answered[0] >= 16 and not is_pinned

        await eventually(follows_load, "Envoy sends calls to the idle worker")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        envoy = await stack.enter_async_context(running_envoy(tmp_path / "envoy"))
        workers = [FakeWorker(info(kv_heartbeat_ms=20, num_blocks=1 << 20)) for _ in range(3)]
        reports = [FakeEndpoint(f"w{i}", utilization=utilization) for i, utilization in enumerate((0.05, 0.9, 0.9))]
        for worker, report in zip(workers, reports, strict=True):
            await stack.enter_async_context(serve_fakes(worker, beside=report))
        addresses = [worker.address for worker in workers]
        write_workers(tmp_path / "workers.json", addresses)
        settings: dict[str, Any] = {
            "mesh_address": str(envoy.options.mesh),
            "workers_file": str(tmp_path / "workers.json"),
            "kv_event_silence_s": SILENCE_S,
        }
        await envoy.join({"worker": [_endpoint(address) for address in addresses]})
        gateway = await stack.enter_async_context(run_gateway(FakeWorker(), wait=False, **settings))
        await eventually(lambda: len(gateway.gateway.fleet.ready_endpoints("fake-model")) == 3, "workers are known")
        yield Mesh(workers, reports, envoy, gateway)


async def test_an_empty_index_leaves_the_choice_to_envoy(mesh: Mesh) -> None:
    for worker in mesh.workers:
        worker.has_snapshot = False
        worker.end_subscription()
    await eventually(lambda: not mesh.gateway.gateway.index.workers, "nothing is known of any cache")
    await mesh.falls_back()


async def test_silent_event_streams_leave_the_choice_to_envoy(mesh: Mesh) -> None:
    """While events flow, calls go to the busy worker that has the prompt; when they stop, to the idle one."""
    index = mesh.gateway.gateway.index
    async with heartbeats(mesh.workers):
        await eventually(lambda: len(index.workers) == 3, "all caches are known")
        stored = worker_pb2.KvStored(keys=KEYS, tier=worker_pb2.TIER_DEVICE)
        mesh.workers[2].publish(worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=1, stored=stored))
        await eventually(lambda: index.match(KEYS) == {mesh.workers[2].address: len(KEYS)}, "the prompt is known")
        assert await mesh.ask(10) == {2: 10}
    for worker in mesh.workers:
        worker.has_snapshot = False  # those who subscribe again hear nothing either
    await eventually(lambda: not index.workers, "nothing is believed")
    await mesh.falls_back()


async def test_lost_event_streams_leave_the_choice_to_envoy(mesh: Mesh) -> None:
    for worker in mesh.workers:
        worker.refuses_events = True
        worker.end_subscription()
    await eventually(lambda: not mesh.gateway.gateway.index.workers, "nothing is known of any cache")
    await mesh.falls_back()


@asynccontextmanager
async def heartbeats(workers: list[FakeWorker]) -> AsyncIterator[None]:
    """Keeps event streams alive."""

    async def beat() -> None:
        while True:
            for worker in workers:
                worker.publish(worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=0))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def _endpoint(address: str) -> Endpoint:
    host, _, port = address.rpartition(":")
    return Endpoint(host, int(port))
