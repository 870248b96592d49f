"""More requests than the workers can take: who goes first, who is sent away, and what ends a wait."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from prometheus_client import REGISTRY

from shoal.api.gateway.v1 import gateway_pb2
from shoal.rpc.errors import Draining, ResourceExhausted
from shoal.rpc.status import from_rpc_error
from support.eventually import eventually
from support.fake_worker import MODEL, FakeWorker, Reply, info
from support.gateway_running import RunningGateway, run_gateway
from support.openai_calls import COMPLETIONS

KEYS = {"gold": "k1", "free": "k2"}


class FullMesh:
    """One worker that runs one request at a time, and the first one is held until `start`."""

    def __init__(self, running: RunningGateway, hold: asyncio.Event) -> None:
        self.running = running
        self.hold = hold
        self.tasks: list[asyncio.Task[Any]] = []

    @property
    def num_waiting(self) -> int:
        admission = self.running.gateway.admission
        assert admission is not None
        return admission.num_waiting

    async def ask(self, text: str, *, tenant: str = "", timeout_s: float = 20, **fields: Any) -> Any:
        """A call under way; it waits, or holds the worker."""
        metadata = (("authorization", f"Bearer {KEYS[tenant]}"),) if tenant else None
        request = gateway_pb2.GenerateRequest(text=text, **fields)
        call = self.running.stub.Generate(request, timeout=timeout_s, metadata=metadata)
        num_before, num_calls = self.num_waiting, len(self.running.worker.calls)
        task = asyncio.create_task(_read(call))
        self.tasks.append(task)
        await eventually(
            lambda: self.num_waiting > num_before or len(self.running.worker.calls) > num_calls or task.done(),
            f"{text} waits",
        )
        return call

    async def finish(self) -> list[str]:
        """Lets the worker go on; the prompts in the order in which it got them."""
        self.hold.set()
        await asyncio.wait_for(asyncio.gather(*self.tasks), 20)
        return self.prompts()

    def prompts(self) -> list[str]:
        """As they came to the worker."""
        return [bytes(call.request.token_ids).decode() for call in self.running.worker.calls]


async def _read(call: Any) -> None:
    async for _ in call:
        pass


@asynccontextmanager
async def full_mesh(*, worker: FakeWorker | None = None, **settings: Any) -> AsyncIterator[FullMesh]:
    """`first` is at the worker."""
    hold = asyncio.Event()
    worker = worker or FakeWorker(info(max_num_seqs=1))
    worker.replies.appendleft(Reply("ab", hold=hold))
    async with run_gateway(worker, worker_queue_ratio=0, **settings) as running:
        mesh = FullMesh(running, hold)
        await mesh.ask("first", tenant="gold" if "api_keys_file" in settings else "")
        yield mesh


def keys_file(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text("\n".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items()))
    return str(path)


def shed(reason: str) -> float:
    return REGISTRY.get_sample_value("shoal_gateway_queue_shed_total", {"model": MODEL, "reason": reason}) or 0.0


async def test_flooding_tenants_share_by_weight_whatever_their_priorities(tmp_path: Path) -> None:
    async with full_mesh(api_keys_file=keys_file(tmp_path), tenant_weights="gold=3") as mesh:
        for number in range(24):
            await mesh.ask(f"gold-{number:02}", tenant="gold", sampling={"max_tokens": 3})
        for number in range(24):
            await mesh.ask(f"free-{number:02}", tenant="free", priority=-100, sampling={"max_tokens": 3})
        labels = {"model": MODEL, "tenant": "gold", "band": "default"}
        assert REGISTRY.get_sample_value("shoal_gateway_queue_requests", labels) == 24
        prompts = await mesh.finish()
        assert {call.request.priority for call in mesh.running.worker.calls} == {0}, "workers know no tenants"
    served = Counter(prompt[:4] for prompt in prompts[1:25])
    assert 16 <= served["gold"] <= 20, "three quarters of 24"
    assert [p for p in prompts if p.startswith("free")] == [f"free-{number:02}" for number in range(24)]


async def test_a_waiting_low_priority_is_passed_but_not_for_ever() -> None:
    async with full_mesh(priority_step_s=1000) as mesh:
        await mesh.ask("low", priority=1)
        await mesh.ask("normal")
        await mesh.ask("high", priority=-1)
        assert await mesh.finish() == ["first", "high", "normal", "low"]
    async with full_mesh(priority_step_s=0.0001) as mesh:  # each wait here is longer than two steps
        await mesh.ask("low", priority=1)
        await mesh.ask("normal")
        await mesh.ask("high", priority=-1)
        assert await mesh.finish() == ["first", "low", "normal", "high"]


async def test_a_full_queue_tells_when_to_come_back_on_both_apis() -> None:
    before = shed("queue_full")
    async with full_mesh(max_queued_requests=1) as mesh:
        await mesh.ask("waits")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.running.generate(text="too many")
        error = from_rpc_error(caught.value)
        assert isinstance(error, ResourceExhausted)
        assert error.retry_after_s is not None
        assert error.retry_after_s >= 1
        response = await mesh.running.http.post(COMPLETIONS, json={"prompt": "too many"})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert await mesh.finish() == ["first", "waits"]
    assert shed("queue_full") == before + 2


async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    """The drain rate is measured, then nothing leaves any more."""
    gates = [asyncio.Event() for _ in range(12)]
    worker = FakeWorker(info(max_num_seqs=1))
    worker.replies = type(worker.replies)([*(Reply("ab", hold=gate) for gate in gates), Reply()])
    async with full_mesh(worker=worker) as mesh:
        for number in range(20):
            await mesh.ask(f"waits {number}")
        mesh.hold.set()
        for number, gate in enumerate(gates[:-1]):
            await eventually(lambda n=number: len(worker.calls) == n + 2, "the next one is at the worker")  # type: ignore[misc]
            await asyncio.sleep(0.02)  # what a request takes
            gate.set()
        before = shed("expected_wait")
        call = mesh.running.stub.Generate(gateway_pb2.GenerateRequest(text="in a hurry"), timeout=0.1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read(call)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "it would wait about" in (caught.value.details() or "")
        assert shed("expected_wait") == before + 1
        gates[-1].set()
        await mesh.finish()


async def test_a_deadline_ends_the_wait_and_the_worker_never_hears_of_it() -> None:
    before = shed("deadline"), shed("client_gone")
    async with full_mesh() as mesh:
        call = mesh.running.stub.Generate(gateway_pb2.GenerateRequest(text="late"), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: mesh.num_waiting == 0, "the queue is empty")
        assert await mesh.finish() == ["first"]
    assert shed("deadline") + shed("client_gone") == sum(before) + 1, "whoever notices first"


async def test_clients_that_leave_the_queue_are_not_served() -> None:
    before = shed("client_gone")
    async with full_mesh() as mesh:
        call = await mesh.ask("gone over grpc")
        address = f"http://127.0.0.1:{mesh.running.gateway.http.port}"
        async with httpx.AsyncClient(base_url=address, timeout=20) as client:
            post = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "gone over http"}))
            await eventually(lambda: mesh.num_waiting == 2, "both wait")
            post.cancel()
            call.cancel()
            await eventually(lambda: mesh.num_waiting == 0, "both are gone")
        with contextlib.suppress(asyncio.CancelledError):
            await mesh.tasks.pop()
        await mesh.ask("stays")
        assert await mesh.finish() == ["first", "stays"]
    assert shed("client_gone") == before + 2


async def test_a_worker_that_is_full_after_all_is_asked_again() -> None:
    worker = FakeWorker(info(max_num_seqs=4))
    refusal = Reply(fail=ResourceExhausted("filled by another gateway"))
    worker.replies = type(worker.replies)([refusal, refusal, Reply("ok", ends_with_eos=False)])
    async with run_gateway(worker) as running:
        messages = await asyncio.gather(*(running.generate(text=name) for name in "xyz"))
        assert ["".join(m.text for m in each) for each in messages] == ["ok"] * 3
        assert len(worker.calls) == 5
    assert REGISTRY.get_sample_value("shoal_gateway_requests_in_flight", {"model": MODEL}) == 0


async def test_many_prompts_in_one_request_need_not_fit_at_once() -> None:
    async with run_gateway(FakeWorker(info(max_num_seqs=2)), worker_queue_ratio=0) as running:
        running.worker.replies[0] = Reply("hello" * 100)
        prompts = [f"prompt {number}" for number in range(12)]
        body = {"prompt": prompts, "max_tokens": 600}
        for stream in (False, True):
            responses = await asyncio.gather(
                *(running.http.post(COMPLETIONS, json=body | {"stream": stream}) for _ in range(3))
            )
            assert [r.status_code for r in responses] == [200] * 3
            assert all(r.text.count('"finish_reason":"stop"') == len(prompts) for r in responses)


async def test_a_stream_that_moves_does_not_wait_behind_new_requests() -> None:
    worker = FakeWorker(info(max_num_seqs=1))
    async with full_mesh(worker=worker) as mesh:
        lost = Reply("abcd", fail=Draining("shutting down"), fail_after=2)
        worker.replies.clear()
        worker.replies.extend([lost, Reply("abcd")])
        for number in range(3):
            await mesh.ask(f"new {number}")
        prompts = await mesh.finish()
    assert prompts == ["first", "new 0", "new 0", "new 1", "new 2"]
    assert list(worker.calls[2].request.resume_token_ids) == list(b"ab")


async def test_draining_serves_those_who_wait_while_there_is_time_and_answers_the_rest() -> None:
    async with full_mesh() as mesh:
        await mesh.ask("in time")
        drained = asyncio.create_task(mesh.running.gateway.drain(10))
        await eventually(lambda: bool(mesh.running.gateway.not_ready()), "it drains")
        assert await mesh.finish() == ["first", "in time"]
        await asyncio.wait_for(drained, 10)
    async with full_mesh() as mesh:
        await mesh.ask("too late")
        drained = asyncio.create_task(mesh.running.gateway.drain(0.4))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mesh.tasks[1]
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in (caught.value.details() or "")
        await asyncio.wait_for(drained, 10)
    with contextlib.suppress(asyncio.CancelledError):  # its channel closed
        await mesh.tasks[0]


async def test_switched_off_everything_goes_to_the_worker_at_once() -> None:
    hold = asyncio.Event()
    worker = FakeWorker(info(max_num_seqs=1))
    worker.replies[0] = Reply(hold_first=hold)
    async with run_gateway(worker, flow_control="off") as running:
        assert running.gateway.admission is None
        tasks = [asyncio.create_task(running.generate(text="x")) for _ in range(5)]
        await eventually(lambda: len(worker.calls) == 5, "all are at the worker")
        hold.set()
        await asyncio.gather(*tasks)
