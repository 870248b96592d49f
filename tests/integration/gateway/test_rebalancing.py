"""Requests leave workers that are slow while others are not: no client notices, but for the time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from prometheus_client import REGISTRY

from shoal.api.gateway.v1 import explain_pb2, gateway_pb2
from shoal.gateway.rebalancing import Rebalancing
from shoal.gateway.routing.rebalance import RebalanceConfig
from support.eventually import eventually
from support.failover_mesh import SIMULATED, Answer, FailoverMesh, failover_mesh, over_grpc, over_http

QUICK = RebalanceConfig(interval_s=0.1, min_gain_s=0.3, silent_s=1.0, max_priced=64)
"""Ten times as quick as usual."""
IDS = gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS
SEEDED = {"max_tokens": 200, "ignore_eos": True, "seed": 7, "temperature": 0.9, "top_p": 0.95}
ASKS = {
    "seeded": over_grpc(text="seeded", sampling=SEEDED, output_format=IDS),
    "penalties": over_grpc(
        text="penalties", sampling={**SEEDED, "frequency_penalty": 0.5, "repetition_penalty": 1.1}, output_format=IDS
    ),
    "stop": over_grpc(text="stop", sampling=SEEDED, stop=["nowhere to be found"]),
    "http": over_http("/v1/completions", prompt="http", stream=True, max_tokens=200, ignore_eos=True, seed=5),
}


def moves() -> float:
    labels = {"model": "simulated", "reason": "rebalance"}
    return REGISTRY.get_sample_value("shoal_gateway_stream_moves_total", labels) or 0.0


@asynccontextmanager
async def rebalanced(mesh: FailoverMesh) -> AsyncIterator[None]:
    """What the gateway does by itself, but quicker."""
    gateway = mesh.running.gateway
    rebalancing = Rebalancing(gateway.fleet, gateway.loads, gateway.watch, gateway.gate, QUICK)
    task = asyncio.create_task(rebalancing.run())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def ask(mesh: FailoverMesh, name: str, begun: asyncio.Event | None = None) -> Answer:
    return await ASKS[name](mesh.running, begun.set if begun else lambda: None)


async def keep_busy(mesh: FailoverMesh) -> None:
    """Short answers one after the other, so that it is known how quick idle workers are."""
    while True:
        await mesh.running.generate(text="short", sampling={"max_tokens": 60, "ignore_eos": True})


async def test_the_streams_of_a_slow_worker_go_on_elsewhere_with_the_same_tokens(tmp_path: Path) -> None:
    async with failover_mesh(tmp_path, 1, *SIMULATED, "--simulated-step-ms=200", rebalance="off") as mesh:
        [slow] = mesh.workers
        begun = {name: asyncio.Event() for name in ASKS}
        asked = {name: asyncio.create_task(ask(mesh, name, begun[name])) for name in ASKS}
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun.values())), 20)
        await mesh.add_worker("--simulated-step-ms=4")
        before = moves()
        async with rebalanced(mesh):
            busy = asyncio.create_task(keep_busy(mesh))
            answers = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
            busy.cancel()
        assert moves() - before >= len(ASKS) - 1, "the last one may have ended before"
        assert not mesh.running.gateway.gate.num_moving
        await mesh.kill(slow)
        fleet = mesh.running.gateway.fleet
        await eventually(lambda: slow not in fleet.ready_endpoints("simulated"), "only the quick one is left")
        for name in ASKS:
            undisturbed = await ask(mesh, name)
            assert answers[name] == undisturbed, f"{name}: {answers[name].difference_from(undisturbed)}"


async def test_requests_do_not_wait_for_their_first_token_at_a_worker_that_stands_still(tmp_path: Path) -> None:
    async with failover_mesh(tmp_path, 2, *SIMULATED, "--simulated-step-ms=4", rebalance="off") as mesh:
        sampling = {"max_tokens": 2, "ignore_eos": True}
        for number in range(24):  # from these it is known how long first tokens take
            await mesh.running.generate(text=f"{number}", sampling=sampling)
        stopped = mesh.workers[sorted(mesh.workers)[0]]
        stopped.signal(signal.SIGSTOP)
        try:
            before = moves()
            async with rebalanced(mesh):
                asked = [mesh.running.generate(text=f"!{number}", sampling=sampling) for number in range(8)]
                answers = await asyncio.wait_for(asyncio.gather(*asked), 15)
            assert {answer[0].worker for answer in answers} == mesh.workers.keys() - {stopped.address}
            assert moves() > before
            explained = [await explain(mesh, answer[0].request_id) for answer in answers]
            assert {attempt.lost for one in explained for attempt in one.attempts} == {"", "rebalance"}
        finally:
            stopped.signal(signal.SIGCONT)


async def explain(mesh: FailoverMesh, request_id: str) -> explain_pb2.Explanation:
    [explanation] = (await mesh.running.stub.Explain(explain_pb2.ExplainRequest(request_id=request_id))).explanations
    return explanation  # type: ignore[no-any-return]
