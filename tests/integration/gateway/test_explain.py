"""`Explain`: what a gateway tells of its requests, to whom, and for how long."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.api.gateway.v1 import explain_pb2, gateway_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import block_keys, namespace_key
from shoal.rpc.errors import Draining
from support.eventually import eventually
from support.fake_worker import FakeWorker, Reply
from support.gateway_running import RunningGateway, run_gateway

PROMPT = "sixteen letters!"
KEYS = block_keys(namespace_key("d1" * 32, "fake-v1"), list(PROMPT.encode()), 4)


async def explain(running: RunningGateway, request_id: str, key: str = "") -> Any:
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    request = explain_pb2.ExplainRequest(request_id=request_id)
    return (await running.stub.Explain(request, metadata=metadata, timeout=10)).explanations


async def refusal(running: RunningGateway, request_id: str, key: str = "") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await explain(running, request_id, key)
    return caught.value.code(), str(caught.value.details())


async def test_a_request_is_explained_from_pick_to_end() -> None:
    async with run_gateway() as running:
        address = running.worker.address
        running.worker.replies[0] = Reply(text="abc", cached_tokens=8)
        event = worker_pb2.KvStored(keys=KEYS[:2], tier=worker_pb2.TIER_DEVICE)
        running.worker.publish(worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=1, stored=event))
        await eventually(lambda: running.gateway.index.match(KEYS) == {address: 2}, "the event arrived")
        [first, *_] = await running.generate(text=PROMPT)
        [found] = await explain(running, first.request_id)
    [attempt] = found.attempts
    [candidate] = attempt.candidates
    assert (found.model, found.prompt_tokens, found.completion_tokens, found.code) == ("fake-model", 16, 4, "OK")
    assert 0 < found.dispatch_s < found.ttft_s < found.total_s
    assert (attempt.reason, list(attempt.endpoints), attempt.worker) == ("prefix", [address], address)
    assert (attempt.predicted_cached_tokens, attempt.cached_tokens, attempt.lost) == (8, 8, "")
    assert (candidate.worker, candidate.cached_tokens, attempt.num_candidates) == (address, 8, 1)
    assert 0 < attempt.ttft_s <= found.ttft_s
    assert not found.HasField("regret_s"), "there was nobody else"
    assert PROMPT not in str(found)


async def test_moves_are_told_with_their_reasons() -> None:
    async with run_gateway() as running:
        running.worker.replies.extend([Reply(text="abcdef")])
        running.worker.replies[0] = Reply(text="abcdef", fail=Draining("it shuts down"), fail_after=3)
        [first, *_] = await running.generate(text=PROMPT)
        [found] = await explain(running, first.request_id)
    lost, moved = found.attempts
    assert (lost.lost, lost.error, lost.delivered_tokens) == ("drain", "it shuts down", 3)
    assert (moved.lost, moved.delivered_tokens, found.completion_tokens) == ("", 4, 7)


async def test_refused_requests_are_explained_too_and_http_ids_find_all_prompts() -> None:
    async with run_gateway() as running:
        with pytest.raises(grpc.aio.AioRpcError):
            await running.generate(text="x" * 2000, request_id="too-long")
        [refused] = await explain(running, "too-long")
        body = {"prompt": ["a", "b"], "max_tokens": 2, "model": "fake-model"}
        answer = await running.http.post("/v1/completions", json=body)
        prompts = await explain(running, answer.headers["x-request-id"])
    assert (refused.code, len(refused.attempts), refused.prompt_tokens) == ("INVALID_ARGUMENT", 0, 2000)
    assert [found.code for found in prompts] == ["OK", "OK"]


async def test_nobody_sees_another_tenants_requests(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{who}:{hashlib.sha256(who.encode()).hexdigest()}\n" for who in ("ann", "bob")))
    async with run_gateway(api_keys_file=str(keys)) as running:
        request = gateway_pb2.GenerateRequest(text=PROMPT, request_id="of-ann")
        call = running.stub.Generate(request, metadata=(("authorization", "Bearer ann"),), timeout=20)
        assert [message async for message in call]
        assert len(await explain(running, "of-ann", "ann")) == 1
        assert (await refusal(running, "of-ann", "bob"))[0] == grpc.StatusCode.NOT_FOUND
        assert (await refusal(running, "of-ann"))[0] == grpc.StatusCode.UNAUTHENTICATED


async def test_the_oldest_are_forgotten_and_the_refusal_says_how_many_are_kept() -> None:
    async with run_gateway(FakeWorker(), explain_requests=2) as running:
        for name in ("one", "two", "three"):
            await running.generate(text=PROMPT, request_id=name)
        code, message = await refusal(running, "one")
        assert len(await explain(running, "three")) == 1
        empty = await refusal(running, "")
    assert code == grpc.StatusCode.NOT_FOUND
    assert message.startswith("no request 'one' of yours is known: 2 are remembered here, the oldest from 0 s ago")
    assert empty[0] == grpc.StatusCode.INVALID_ARGUMENT
