"""The MESH listener of a real Envoy: choice of worker, fallback, retries, load reports, endpoints that come and go."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from support.envoy_running import RunningEnvoy, running_envoy
from support.eventually import eventually
from support.fake_endpoints import GENERATE, FakeEndpoint, serving

PIN = "x-shoal-endpoint"
PREFIX_HASH = "x-shoal-prefix-hash"
SERVED_BY = "x-shoal-served-by"


async def ask(envoy: RunningEnvoy, pin: str | None = None, method: str = GENERATE) -> tuple[str, str]:
    """(Who answered by its own account, who answered by Envoy's header)."""
    metadata = [(PIN, pin)] if pin is not None else None
    call = envoy.mesh.unary_stream(method)(b"", metadata=metadata, timeout=10)
    messages = [message async for message in call]
    assert messages[1] == b"end"
    headers = dict(await call.initial_metadata())
    return messages[0].decode(), str(headers[SERVED_BY])


async def ask_many(envoy: RunningEnvoy, count: int, pin: str | None = None) -> Counter[str]:
    return Counter([(await ask(envoy, pin))[0] for _ in range(count)])


class Fleet:
    """Three workers behind an Envoy."""

    def __init__(self, envoy: RunningEnvoy, workers: list[FakeEndpoint]) -> None:
        self.envoy = envoy
        self.workers = workers

    def pin(self, *indices: int) -> str:
        return ",".join(str(self.workers[index].endpoint) for index in indices)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(serving(f"w{index}")) for index in range(3)]
        envoy = await stack.enter_async_context(running_envoy(tmp_path))
        await envoy.join({"worker": [worker.endpoint for worker in workers]})
        yield Fleet(envoy, workers)


async def test_pin_is_honoured_and_named(fleet: Fleet) -> None:
    for index in (2, 0, 1):
        answers = await ask_many(fleet.envoy, 5, fleet.pin(index, (index + 1) % 3))
        assert answers == {f"w{index}": 5}
    assert await ask(fleet.envoy, fleet.pin(1)) == ("w1", str(fleet.workers[1].endpoint))


@pytest.mark.parametrize("pin", [None, "", "garbage", "10.0.0.1:1", " , ,", "localhost:80"])
async def test_useless_pin_falls_back_to_all(fleet: Fleet, pin: str | None) -> None:
    assert sum((await ask_many(fleet.envoy, 6, pin)).values()) == 6


async def test_unhealthy_pin_falls_to_the_next_choice(fleet: Fleet) -> None:
    await fleet.workers[2].set_serving(False)
    gone = ("worker", str(fleet.workers[2].endpoint))

    async def noticed() -> bool:
        return gone not in await fleet.envoy.healthy_hosts()

    await eventually(noticed, "w2 fails its health check")
    assert await ask_many(fleet.envoy, 10, fleet.pin(2, 1)) == {"w1": 10}
    assert "w2" not in await ask_many(fleet.envoy, 10, fleet.pin(2))
    await fleet.workers[2].set_serving(True)
    await fleet.envoy.join({"worker": [fleet.workers[2].endpoint]})
    assert await ask_many(fleet.envoy, 3, fleet.pin(2, 1)) == {"w2": 3}


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
async def test_full_worker_passes_to_the_next_in_the_list(fleet: Fleet, code: grpc.StatusCode) -> None:
    fleet.workers[0].refuse_with = code
    assert await ask_many(fleet.envoy, 5, fleet.pin(0, 2, 1)) == {"w2": 5}
    assert fleet.workers[0].num_calls == 5
    fleet.workers[2].refuse_with = code
    assert await ask_many(fleet.envoy, 3, fleet.pin(0, 2, 1)) == {"w1": 3}


async def test_all_full_tells_the_caller(fleet: Fleet) -> None:
    for worker in fleet.workers:
        worker.refuse_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(fleet.envoy, fleet.pin(0, 1, 2))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sum(worker.num_calls for worker in fleet.workers) == 3


async def test_invalid_argument_is_not_retried(fleet: Fleet) -> None:
    fleet.workers[0].refuse_with = grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError, match="w0 refuses"):
        await ask(fleet.envoy, fleet.pin(0, 1))
    assert [worker.num_calls for worker in fleet.workers] == [1, 0, 0]


async def test_load_reports_shift_unpinned_calls(fleet: Fleet) -> None:
    for worker, utilization in zip(fleet.workers, (0.05, 0.9, 0.9), strict=True):
        worker.utilization = utilization

    async def shifted() -> bool:
        answers = await ask_many(fleet.envoy, 20)
        return answers["w0"] >= 16

    await eventually(shifted, "calls go where there is room")
    assert all(worker.num_reports > 1 for worker in fleet.workers)


async def test_a_ring_hash_sends_equal_beginnings_to_one_worker_and_others_elsewhere(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(serving(f"w{index}")) for index in range(3)]
        envoy = await stack.enter_async_context(running_envoy(tmp_path, balancing="prefix_hash"))
        await envoy.join({"worker": [worker.endpoint for worker in workers]})
        prefixes = [f"{number:032x}" for number in range(24)]

        async def ask_by(prefix: str, pin: str | None = None) -> str:
            metadata = [(PREFIX_HASH, prefix), *([(PIN, pin)] if pin else [])]
            call = envoy.mesh.unary_stream(GENERATE)(b"", metadata=metadata, timeout=10)
            messages = [message async for message in call]
            return str(messages[0].decode())

        homes = {prefix: await ask_by(prefix) for prefix in prefixes}
        assert set(homes.values()) == {"w0", "w1", "w2"}
        for prefix in prefixes:
            assert await ask_by(prefix) == homes[prefix]
        assert sum((await ask_many(envoy, 6)).values()) == 6, "calls without a hash are served as well"
        first = prefixes[0]
        other = next(worker for worker in workers if worker.name != homes[first])
        assert await ask_by(first, str(other.endpoint)) == other.name, "a pin is stronger"
        home = next(worker for worker in workers if worker.name == homes[first])
        home.refuse_with = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await ask_by(first) != home.name
        envoy.membership.leave({"worker": home.endpoint})

        async def left() -> bool:
            return ("worker", str(home.endpoint)) not in await envoy.healthy_hosts()

        await eventually(left, "the worker is gone")
        others = [prefix for prefix in prefixes if homes[prefix] != home.name]
        kept = [prefix for prefix in others if await ask_by(prefix) == homes[prefix]]
        assert len(kept) >= len(others) / 2, "most of the others' prefixes stay"


async def test_endpoint_changes_apply_and_break_no_stream(fleet: Fleet) -> None:
    leaving = fleet.workers[1]
    leaving.held = asyncio.Event()
    stream = fleet.envoy.mesh.unary_stream(GENERATE)(b"", metadata=[(PIN, fleet.pin(1))], timeout=10)
    assert await stream.read() == b"w1"

    async def updates() -> int:
        stats = await fleet.envoy.admin("/stats?format=json&filter=cluster.worker.update_success")
        return int(stats["stats"][0]["value"])

    before = await updates()
    fleet.envoy.membership.leave({"worker": leaving.endpoint})

    async def applied() -> bool:
        return await updates() > before

    await eventually(applied, "Envoy has the new endpoints")
    assert "w1" not in await ask_many(fleet.envoy, 6, fleet.pin(1))
    leaving.held.set()
    assert await stream.read() == b"end"
    assert await stream.code() is grpc.StatusCode.OK


async def test_more_streams_than_default_limits(fleet: Fleet) -> None:
    """Envoy's defaults let 1024 requests through to a cluster and fail the rest."""
    held = asyncio.Event()
    for worker in fleet.workers:
        worker.held = held
    streams = [fleet.envoy.mesh.unary_stream(GENERATE)(b"", timeout=60) for _ in range(1200)]
    firsts = await asyncio.gather(*(stream.read() for stream in streams))
    assert {bytes(first) for first in firsts} == {b"w0", b"w1", b"w2"}
    held.set()
    assert set(await asyncio.gather(*(stream.read() for stream in streams))) == {b"end"}
    assert set(await asyncio.gather(*(stream.code() for stream in streams))) == {grpc.StatusCode.OK}


async def test_healthy_workers_get_calls_at_once(tmp_path: Path) -> None:
    """With Envoy's default of merging health changes for a second, these calls fail with "no healthy upstream"."""
    async with serving("w0") as worker, running_envoy(tmp_path, num_workers=1) as envoy:
        await envoy.join({"worker": [worker.endpoint]})
        assert await ask_many(envoy, 3) == {"w0": 3}


async def test_only_the_workers_service_is_routed(fleet: Fleet) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(fleet.envoy, method="/shoal.api.gateway.v1.GatewayService/Generate")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_nothing_cuts_a_long_stream(fleet: Fleet) -> None:
    """Proven on what Envoy runs, not by waiting: every route without a limit, every listener without an idle one."""
    dump = await fleet.envoy.admin("/config_dump")
    listeners = [
        listener["active_state"]["listener"]
        for config in dump["configs"]
        for listener in config.get("dynamic_listeners", ())
    ]
    assert {listener["name"] for listener in listeners} == {"edge", "mesh"}
    for listener in listeners:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        assert manager["stream_idle_timeout"] == "0s"
        for host in manager["route_config"]["virtual_hosts"]:
            for route in host["routes"]:
                assert route["route"]["timeout"] == "0s", route


async def test_half_a_file_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    target = tmp_path / "xds" / "eds-worker.json"
    scratch = tmp_path / "broken"
    scratch.write_text('{"resources": [')
    scratch.replace(target)

    async def rejected() -> bool:
        stats = await fleet.envoy.admin("/stats?format=json&filter=cluster.worker.update_(failure|rejected)")
        return any(int(stat["value"]) > 0 for stat in stats["stats"])

    await eventually(rejected, "Envoy refuses the file")
    assert sum((await ask_many(fleet.envoy, 6)).values()) == 6
