"""A real Envoy, told by the operator's discovery server, in both variants of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from shoal.operator.envoy import Endpoint
from support.discovered_envoy import CLUSTER, DiscoveredEnvoy, Protocol, discovered_envoy
from support.envoy_running import running_envoy
from support.eventually import eventually
from support.fake_endpoints import GENERATE, FakeEndpoint, serving


@pytest.fixture(params=["DELTA_GRPC", "GRPC"])
async def envoy(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DiscoveredEnvoy]:
    protocol: Protocol = request.param
    async with discovered_envoy(tmp_path, protocol) as running:
        yield running


@pytest.fixture
async def workers() -> AsyncIterator[list[FakeEndpoint]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(f"w{index}")) for index in range(2)]


async def ask(envoy: DiscoveredEnvoy) -> str:
    call = envoy.mesh.unary_stream(GENERATE)(b"", timeout=10)
    messages = [message async for message in call]
    return str(messages[0].decode())


async def test_it_becomes_what_files_would_have_made_it(envoy: DiscoveredEnvoy, tmp_path: Path) -> None:
    """Nothing is lost between plain data and protobuf: Envoy prints the same configuration from both."""
    (tmp_path / "files").mkdir()
    async with running_envoy(tmp_path / "files") as by_files:
        one, other = await clusters_of(by_files), await clusters_of(envoy)
        for cluster in (*one.values(), *other.values()):
            del cluster["eds_cluster_config"]
        assert one == {name: cluster for name, cluster in other.items() if name != "control-plane"}
        listeners = [await listeners_of(each) for each in (by_files, envoy)]
    for found in listeners:
        for listener in found.values():
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            listener.pop("address")
            manager.pop("rds", None) or manager.pop("route_config")
    assert listeners[0] == listeners[1]


async def clusters_of(envoy: Any) -> dict[str, Any]:
    dump = await envoy.admin("/config_dump?resource=dynamic_active_clusters")
    return {config["cluster"]["name"]: config["cluster"] for config in dump["configs"]}


async def listeners_of(envoy: Any) -> dict[str, Any]:
    dump = await envoy.admin("/config_dump?resource=dynamic_listeners")
    return {config["name"]: config["active_state"]["listener"] for config in dump["configs"]}


async def test_workers_come_and_go(envoy: DiscoveredEnvoy, workers: list[FakeEndpoint]) -> None:
    first, second = (worker.endpoint for worker in workers)
    envoy.publish({"worker": [first]})
    await envoy.until_healthy([first])
    assert await ask(envoy) == "w0"
    envoy.publish({"worker": [second]})
    await envoy.until_healthy([second])
    assert await ask(envoy) == "w1"
    assert envoy.control.store.nodes(CLUSTER) == ("test",)
    assert not envoy.control.store.rejections(CLUSTER)


async def test_a_changed_cluster_keeps_its_endpoints(envoy: DiscoveredEnvoy, workers: list[FakeEndpoint]) -> None:
    """Envoy warms a changed cluster until its endpoints, which are the same, are sent again."""
    endpoints = {"worker": [worker.endpoint for worker in workers]}
    envoy.publish(endpoints)
    await envoy.until_healthy(endpoints["worker"])
    envoy.publish(endpoints, balancing="prefix_hash", num_workers=2)

    async def is_changed() -> bool:
        return "ring_hash" in str((await clusters_of(envoy))["worker"])

    await eventually(is_changed, "the changed cluster is active")
    await envoy.until_healthy(endpoints["worker"])
    assert {await ask(envoy) for _ in range(4)} <= {"w0", "w1"}


async def test_routes_change_without_cutting_streams(envoy: DiscoveredEnvoy, workers: list[FakeEndpoint]) -> None:
    first = workers[0].endpoint
    envoy.publish({"worker": [first]})
    await envoy.until_healthy([first])
    gate = workers[0].held = asyncio.Event()
    held = envoy.mesh.unary_stream(GENERATE)(b"hold", timeout=30)
    assert (await held.read()).decode() == "w0"
    envoy.publish({"worker": [first]}, num_workers=1)

    async def is_changed() -> bool:
        dump = await envoy.admin("/config_dump?resource=dynamic_route_configs")
        return "'num_retries': 1," in str(dump)

    await eventually(is_changed, "the changed route is active")
    gate.set()
    assert await held.read() == b"end"


async def test_what_envoy_rejects_is_told_and_changes_nothing(
    envoy: DiscoveredEnvoy, workers: list[FakeEndpoint]
) -> None:
    first = workers[0].endpoint
    envoy.publish({"worker": [first]})
    await envoy.until_healthy([first])
    envoy.publish({"worker": [Endpoint("not-an-address.invalid", 1)]})
    store = envoy.control.store
    await eventually(lambda: bool(store.rejections(CLUSTER)), "the rejection is known")
    (rejection,) = store.rejections(CLUSTER)
    assert (rejection.node, rejection.kind.name) == ("test", "ENDPOINTS")
    assert "malformed IP address: not-an-address.invalid" in rejection.message
    assert await ask(envoy) == "w0"
    envoy.publish({"worker": [workers[1].endpoint]})
    await envoy.until_healthy([workers[1].endpoint])
    await eventually(lambda: not store.rejections(CLUSTER), "the rejection is over")


async def test_without_its_control_plane_envoy_goes_on_and_catches_up(
    envoy: DiscoveredEnvoy, workers: list[FakeEndpoint]
) -> None:
    first, second = (worker.endpoint for worker in workers)
    envoy.publish({"worker": [first]})
    await envoy.until_healthy([first])
    await envoy.control.stop()
    await eventually(lambda: not envoy.control.store.nodes(CLUSTER), "its stream is over")
    assert await ask(envoy) == "w0"
    envoy.publish({"worker": [second]})
    await envoy.control.start()
    await envoy.until_healthy([second])
    assert await ask(envoy) == "w1"


async def test_an_envoy_of_a_service_that_is_gone_keeps_what_it_has(
    envoy: DiscoveredEnvoy, workers: list[FakeEndpoint]
) -> None:
    first = workers[0].endpoint
    envoy.publish({"worker": [first]})
    await envoy.until_healthy([first])
    store = envoy.control.store
    store.drop(CLUSTER)
    store.put("default/other", envoy.publish({}))
    store.drop(CLUSTER)
    await envoy.control.stop()
    await envoy.control.start()
    await eventually(lambda: bool(store.nodes(CLUSTER)), "it is back")
    assert await ask(envoy) == "w0"
