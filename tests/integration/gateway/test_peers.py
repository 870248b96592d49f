"""Several gateways in front of the same workers: they know each other's loads, and go on without each other."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.api.gateway.v1 import explain_pb2, gateway_pb2, gateway_pb2_grpc
from shoal.api.peer.v1 import peer_pb2, peer_pb2_grpc
from support.eventually import eventually
from support.fake_worker import FakeWorker, Reply, info, serve_fakes
from support.gateway_process import start_gateway
from support.gateway_running import RunningGateway, run_gateway, write_workers

PROMPT = "the same new prompt for everybody, of some twenty blocks or so, by all who can write it down"
PIN = "x-shoal-endpoint"


class Mesh:
    """Gateways that come and go, in front of two workers. The first of them stands for Envoy and gets every request."""

    def __init__(self, path: Path, workers: list[FakeWorker], tokenizer: str) -> None:
        self.workers = workers
        self.running: list[RunningGateway] = []
        self.settings: dict[str, Any] = {
            "mesh_address": workers[0].address,
            "workers_file": str(path / "workers.json"),
            "peers_file": str(path / "peers.json"),
            "tokenizer_address": tokenizer,
            "routing_policy": "prefix_sticky",
        }

    def list_peers(self, *others: int) -> None:
        """Writes who there is, as the operator does: all in this process, and ports of others."""
        ports = [*(running.gateway.sharing.port for running in self.running), *others]
        write_workers(Path(self.settings["peers_file"]), [f"127.0.0.1:{port}" for port in ports])

    @asynccontextmanager
    async def gateway(self, **settings: Any) -> AsyncIterator[RunningGateway]:
        """One more; gone at the end, and its port with it."""
        async with run_gateway(wait=False, **(self.settings | settings)) as running:
            expected = {w.address for w in self.workers}
            await eventually(lambda: running.gateway.index.workers == expected, "all caches are known")
            await eventually(lambda: not running.gateway.not_ready(), "the gateway is ready")
            self.running.append(running)
            self.list_peers()
            try:
                yield running
            finally:
                self.running.remove(running)

    async def acquaint(self, num_others: int) -> None:
        """Waits until every gateway here follows so many."""
        await eventually(lambda: all(followed(r) == num_others for r in self.running), "gateways follow each other")

    def pins(self) -> list[str]:
        """The first choice of every request so far."""
        return [call.metadata[PIN].partition(",")[0] for call in self.workers[0].calls]


def followed(running: RunningGateway) -> int:
    peers = running.gateway.sharing.peers
    return peers.num_followed if peers else 0


def under_way(running: RunningGateway, mesh: Mesh) -> int:
    """Requests at all workers, as this gateway sees it."""
    return sum(running.gateway.loads.of(worker.address).num_requests for worker in mesh.workers)


async def knows(running: RunningGateway, mesh: Mesh, num: int) -> None:
    await eventually(lambda: under_way(running, mesh) == num, f"the gateway knows of {num} requests under way")


@asynccontextmanager
async def mesh_of(path: Path, num_gateways: int) -> AsyncIterator[Mesh]:
    workers = [FakeWorker(), FakeWorker()]
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(serve_fakes(worker))
        write_workers(path / "workers.json", [w.address for w in workers])
        alone = await stack.enter_async_context(run_gateway())  # its tokenizer serves all of them
        mesh = Mesh(path, workers, alone.worker.address)
        for _ in range(num_gateways):
            await stack.enter_async_context(mesh.gateway())
        await mesh.acquaint(num_gateways - 1)
        yield mesh


async def test_every_gateway_knows_what_all_have_under_way(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, 3) as mesh:
        hold = asyncio.Event()
        mesh.workers[0].replies[0] = Reply(hold_first=hold)
        asked = [asyncio.create_task(running.generate(text=PROMPT)) for running in mesh.running]
        for running in mesh.running:
            await knows(running, mesh, 3)
            assert len(running.gateway.loads.open) == 1
        hold.set()
        await asyncio.gather(*asked)
        for running in mesh.running:
            await knows(running, mesh, 0)


async def test_a_new_prompt_goes_where_another_gateway_just_sent_it(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, 2) as mesh:
        first, second = mesh.running
        await second.generate(text="something else moves the turn on")
        hold = asyncio.Event()
        mesh.workers[0].replies[0] = Reply(hold_first=hold)
        asked = [asyncio.create_task(first.generate(text=PROMPT))]
        await eventually(lambda: under_way(second, mesh) == 1, "the other gateway heard of it")
        asked.append(asyncio.create_task(second.generate(text=PROMPT)))
        await eventually(lambda: len(mesh.workers[0].calls) == 3, "both requests are under way")
        hold.set()
        await asyncio.gather(*asked)
        _, mine, theirs = mesh.pins()
        assert mine == theirs


async def test_a_gateway_that_ends_takes_its_share_along_and_comes_back_elsewhere(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, 1) as mesh:
        [left] = mesh.running
        hold = asyncio.Event()
        mesh.workers[0].replies[0] = Reply(hold_first=hold)
        for _ in range(2):  # the second time on another port
            async with mesh.gateway() as other:
                await mesh.acquaint(1)
                asked = asyncio.create_task(other.generate(text=PROMPT))
                await eventually(lambda: under_way(left, mesh) == 1, "the request is known")
            await eventually(lambda: under_way(left, mesh) == 0 and not followed(left), "the share is gone")
            mesh.list_peers()
            await asyncio.gather(asked, return_exceptions=True)


async def test_killed_and_stopped_gateway_processes_count_for_nothing(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, 1) as mesh:
        [left] = mesh.running
        mesh.workers[0].replies[0] = Reply(hold=asyncio.Event())
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in mesh.settings.items()]
        async with start_gateway("--port=0", "--metrics-port=0", *flags) as process:
            mesh.list_peers(int((await process.wait_logged("peers"))["port"]))
            await mesh.acquaint(1)
            async with grpc.aio.insecure_channel(process.address) as channel:
                stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
                call = stub.Generate(gateway_pb2.GenerateRequest(text=PROMPT), timeout=60)
                await call.read()
                await eventually(lambda: under_way(left, mesh) == 1, "the request is known")
                process.signal(signal.SIGSTOP)
                await eventually(lambda: under_way(left, mesh) == 0, "a silent gateway counts for nothing")
                process.signal(signal.SIGCONT)
                await eventually(lambda: under_way(left, mesh) == 1, "it is back")
                process.signal(signal.SIGKILL)
                await eventually(lambda: under_way(left, mesh) == 0, "a killed gateway counts for nothing", 2.0)
                call.cancel()


async def test_any_gateway_explains_what_another_one_served(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, 3) as mesh:
        await mesh.running[0].generate(text=PROMPT, request_id="who-served-me")
        ask = explain_pb2.ExplainRequest(request_id="who-served-me")
        answers = [(await running.stub.Explain(ask, timeout=10)).explanations for running in mesh.running]
        assert [[e.request_id for e in answer] for answer in answers] == [["who-served-me"]] * 3
        assert {e.gateway for answer in answers for e in answer} == {f"127.0.0.1:{mesh.running[0].gateway.grpc.port}"}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.running[1].stub.Explain(explain_pb2.ExplainRequest(request_id="nobody"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "2 of 2 other gateways know nothing of it either" in str(caught.value.details())


async def test_the_public_port_does_not_lead_to_what_gateways_tell_each_other(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, 2) as mesh:
        stub: Any = peer_pb2_grpc.PeerServiceStub(mesh.running[0].channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.FindExplanations(peer_pb2.FindExplanationsRequest(request_id="x"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


KEYS = {"left": "k1", "both": "k2"}


async def test_tenants_turns_are_fair_over_all_gateways(tmp_path: Path) -> None:
    """`both` asks at two gateways, `left` at one of them: each gets half of the worker, not a quarter and three."""
    keys = tmp_path / "keys"
    keys.write_text("\n".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items()))
    settings: dict[str, Any] = {"api_keys_file": str(keys), "worker_queue_ratio": 0, "num_gateways": 2}
    async with AsyncExitStack() as stack:
        worker = FakeWorker(info(max_num_seqs=2))
        await stack.enter_async_context(serve_fakes(worker))
        write_workers(tmp_path / "workers.json", [worker.address])
        alone = await stack.enter_async_context(run_gateway())
        mesh = Mesh(tmp_path, [worker], alone.worker.address)
        gateways = [await stack.enter_async_context(mesh.gateway(**settings)) for _ in range(2)]
        await mesh.acquaint(1)
        hold = asyncio.Event()
        worker.replies[0] = Reply("abcdefgh", hold=hold)
        async with asyncio.TaskGroup() as group:
            for number, tenant in ((0, "left"), (0, "both"), (1, "both")):
                for _ in range(40):
                    group.create_task(ask_as(gateways[number], tenant))
            admissions = [running.gateway.admission for running in gateways]
            await eventually(
                lambda: sum(a.num_waiting for a in admissions if a) + len(worker.calls) == 120, "all wait but the first"
            )
            num_first = len(worker.calls)
            hold.set()
        first = Counter(bytes(call.request.token_ids).decode() for call in worker.calls[num_first : num_first + 60])
    assert 22 <= first["left"] <= 38, first


async def ask_as(running: RunningGateway, tenant: str) -> None:
    request = gateway_pb2.GenerateRequest(text=tenant)
    metadata = (("authorization", f"Bearer {KEYS[tenant]}"),)
    async for _ in running.stub.Generate(request, timeout=30, metadata=metadata):
        pass
