"""Somebody else's Envoy, set up as in examples/, asks the gateway where requests should go."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc
from shoal.blocks import block_keys, namespace_key
from shoal.operator.envoy import find_envoy
from shoal.operator.substrate.ports import PortReservations
from support.eventually import eventually
from support.fake_endpoints import FakeEndpoint
from support.fake_worker import FakeWorker, Reply, serve_fakes
from support.gateway_running import RunningGateway, run_gateway, write_workers

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "envoy" / "endpoint-picker.yaml"
PROMPT = list(range(1, 41))
KEYS = block_keys(namespace_key("d1" * 32, "fake-v1"), PROMPT, 4)


@dataclass
class Proxied:
    """Two workers, the gateway that knows them, and an Envoy that asks it."""

    workers: list[FakeWorker]
    gateway: RunningGateway
    stub: Any

    async def ask(self, token_ids: list[int], **changes: Any) -> int:
        """Which worker answered."""
        before = [len(worker.calls) for worker in self.workers]
        request = worker_pb2.GenerateRequest(token_ids=token_ids, **changes)
        async for _ in self.stub.Generate(request, timeout=20):
            pass
        [answered] = [i for i, worker in enumerate(self.workers) if len(worker.calls) > before[i]]
        assert self.workers[answered].calls[-1].request == request
        return answered

    def publish(self, index: int, keys: list[bytes]) -> None:
        stored = worker_pb2.KvStored(keys=keys, tier=worker_pb2.TIER_DEVICE)
        self.workers[index].publish(worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=1, stored=stored))


def bootstrap(listener: int, picker: int, workers: list[str], folder: Path, response_body_mode: str) -> dict[str, Any]:
    """The example with other ports."""
    document: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    resources = document["static_resources"]
    resources["listeners"][0]["address"]["socket_address"]["port_value"] = listener
    [manager] = resources["listeners"][0]["filter_chains"][0]["filters"]
    mode = manager["typed_config"]["http_filters"][0]["typed_config"]["processing_mode"]
    assert mode["response_body_mode"] == "NONE"
    mode["response_body_mode"] = response_body_mode
    for cluster, ports in zip(
        resources["clusters"], ([picker], [int(w.rpartition(":")[2]) for w in workers]), strict=True
    ):
        [locality] = cluster["load_assignment"]["endpoints"]
        assert len(locality["lb_endpoints"]) == len(ports)
        for entry, port in zip(locality["lb_endpoints"], ports, strict=True):
            entry["endpoint"]["address"]["socket_address"]["port_value"] = port
    return {**document, "admin": {"address": {"pipe": {"path": f"{folder}/admin.sock"}}}}


@pytest.fixture(params=["NONE", "FULL_DUPLEX_STREAMED"])
def response_body_mode(request: pytest.FixtureRequest) -> str:
    """As in the example, and as other people's proxies may have it: responses pass through the picker."""
    return str(request.param)


@pytest.fixture
async def proxied(tmp_path: Path, response_body_mode: str) -> AsyncIterator[Proxied]:
    async with AsyncExitStack() as stack:
        workers = [FakeWorker(), FakeWorker()]
        reports = [FakeEndpoint("busy", utilization=0.9), FakeEndpoint("idle", utilization=0.05)]
        addresses = [
            await stack.enter_async_context(serve_fakes(worker, beside=report))
            for worker, report in zip(workers, reports, strict=True)
        ]
        file = tmp_path / "workers.json"
        write_workers(file, addresses)
        settings: dict[str, Any] = {
            "workers_file": str(file),
            "endpoint_picker": "on",
            "endpoint_picker_port": 0,
            "routing_policy": "prefix_sticky",
        }
        gateway = await stack.enter_async_context(run_gateway(FakeWorker(), wait=False, **settings))
        await eventually(lambda: gateway.gateway.index.workers == set(addresses), "both caches are known")
        picker = gateway.gateway.endpoint_picker
        assert picker is not None
        await picker.set_serving(True)
        reserved = stack.enter_context(PortReservations())
        port = reserved.reserve("clients")
        config = tmp_path / "envoy.yaml"
        config.write_text(yaml.safe_dump(bootstrap(port, picker.port, addresses, tmp_path, response_body_mode)))
        arguments = ["-c", str(config), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
        envoy = await asyncio.create_subprocess_exec(str(find_envoy()), *arguments)
        stack.push_async_callback(envoy.wait)
        stack.callback(envoy.kill)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        async with asyncio.timeout(20):
            await channel.channel_ready()
        yield Proxied(workers, gateway, worker_pb2_grpc.ModelWorkerServiceStub(channel))


async def test_requests_go_where_their_prompt_is_cached(proxied: Proxied) -> None:
    for index in (1, 0):
        prompt = [token + 50 * index for token in PROMPT]
        keys = block_keys(namespace_key("d1" * 32, "fake-v1"), prompt, 4)
        proxied.publish(index, keys)
        known = {proxied.workers[index].address: len(keys)}
        await eventually(functools.partial(_knows, proxied, keys, known), "the cache is known")
        for _ in range(3):
            assert await proxied.ask(prompt) == index


async def test_a_burst_of_different_prompts_is_spread_and_counted(proxied: Proxied) -> None:
    """The picker knows from the proxy's messages what is under way, and when it has ended."""
    hold = asyncio.Event()
    for worker in proxied.workers:
        worker.replies[0] = Reply(hold=hold)
    loads = proxied.gateway.gateway.loads
    addresses = [worker.address for worker in proxied.workers]
    asks = [
        asyncio.create_task(_drain(proxied.stub.Generate(worker_pb2.GenerateRequest(token_ids=[n] * 40), timeout=20)))
        for n in range(1, 11)
    ]
    await eventually(lambda: sum(len(worker.calls) for worker in proxied.workers) == 10, "all are under way")
    counts = [len(worker.calls) for worker in proxied.workers]
    assert min(counts) >= 4, counts
    await eventually(lambda: all(loads.of(a).num_waiting_tokens == 0 for a in addresses), "first tokens were noticed")
    assert [loads.of(address).num_requests for address in addresses] == counts
    hold.set()
    await asyncio.gather(*asks)
    await eventually(lambda: all(loads.of(a).num_requests == 0 for a in addresses), "ends were noticed")


async def test_large_bodies_arrive_whole(proxied: Proxied) -> None:
    """Envoy takes pieces of a body of at most 64 KiB back."""
    prompt = [100_000 + n for n in range(60_000)]
    assert await proxied.ask(prompt, cache_salt=b"s") in (0, 1)


async def test_without_the_picker_the_proxy_goes_on_by_itself(proxied: Proxied) -> None:
    """By load, from the moment its health check fails; until then Envoy gives bodies to a picker that is not there."""
    picker = proxied.gateway.gateway.endpoint_picker
    assert picker is not None
    await picker.stop(0)

    async def goes_on() -> bool:
        try:
            await proxied.ask(PROMPT)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(goes_on, "Envoy has noticed")

    async def follows_load() -> bool:
        return sum([await proxied.ask(PROMPT) for _ in range(20)]) >= 16

    await eventually(follows_load, "requests go to the idle worker")


async def test_health_services_of_the_protocol(proxied: Proxied) -> None:
    gateway = proxied.gateway.gateway
    assert gateway.endpoint_picker is not None
    serving = health_pb2.HealthCheckResponse.SERVING
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.endpoint_picker.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        names = ("liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
        for name in names:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == serving
        await gateway.endpoint_picker.set_serving(False)
        states = [(await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status for name in names]
        assert [state == serving for state in states] == [True, False, False]


def _knows(proxied: Proxied, keys: list[bytes], known: dict[str, int]) -> bool:
    return proxied.gateway.gateway.index.match(keys) == known


async def _drain(call: Any) -> None:
    async for _ in call:
        pass
