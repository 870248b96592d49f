"""The OpenAI HTTP API around the completions: models, health, keys, clients that leave, and the drain."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import grpc
import grpc.aio
import pytest

from shoal.api.gateway.v1 import gateway_pb2
from support.eventually import eventually
from support.fake_worker import MODEL, Reply
from support.gateway_running import run_gateway
from support.openai_calls import CHAT, MESSAGES, chat, events


async def test_models() -> None:
    async with run_gateway() as running:
        models = (await running.http.get("/v1/models")).json()
        one = (await running.http.get(f"/v1/models/{MODEL}")).json()
        missing = await running.http.get("/v1/models/org/gpt")
    assert models["object"] == "list"
    assert models["data"] == [one]
    assert (one["id"], one["object"], one["max_model_len"]) == (MODEL, "model", 1024)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert MODEL in missing.json()["error"]["message"]


async def test_health_readiness_and_metrics() -> None:
    async with run_gateway(wait=False, tokenizer_address="127.0.0.1:1") as running:
        live, ready = await running.http.get("/healthz"), await running.http.get("/readyz")
        refused = await chat(running)
    assert (live.status_code, ready.status_code, refused.status_code) == (200, 503, 503)
    assert "tokenizer" in ready.json()["error"]["message"]
    async with run_gateway() as running:
        assert (await running.http.get("/readyz")).status_code == 200
        await chat(running)
        metrics = (await running.http.get("/metrics")).text
    assert f'shoal_gateway_requests_total{{code="OK",model="{MODEL}"}}' in metrics
    assert 'shoal_gateway_picks_total{reason="load"}' in metrics
    assert f'shoal_gateway_requests_in_flight{{model="{MODEL}"}} 0.0' in metrics


async def test_api_keys_guard_both_apis_and_separate_caches(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme:" + hashlib.sha256(b"secret").hexdigest())
    async with run_gateway(api_keys_file=str(keys)) as running:
        refused = await chat(running)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert (await running.http.get("/v1/models")).status_code == 401
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.generate(text="x")
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert (await running.http.get("/healthz")).status_code == 200
        accepted = await running.http.post(
            CHAT, json={"messages": MESSAGES}, headers={"authorization": "Bearer secret"}
        )
        assert accepted.status_code == 200
        call = running.stub.Generate(
            gateway_pb2.GenerateRequest(text="x"), metadata=(("authorization", "Bearer secret"),)
        )
        assert [m async for m in call]
        salts = {c.request.cache_salt for c in running.worker.calls}
    assert salts == {hashlib.sha256(b"tenant:acme").digest()}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_worker(stream: bool) -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abc", hold=asyncio.Event())
        request = asyncio.ensure_future(chat(running, stream=stream))
        await asyncio.wait_for(running.worker.called.wait(), 10)
        request.cancel()
        call = running.worker.calls[0]
        await asyncio.wait_for(call.ended.wait(), 10)
        assert call.cancelled


async def test_draining_lets_streams_finish_and_takes_nothing_new() -> None:
    release = asyncio.Event()
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abc", hold=release)
        by_http = asyncio.ensure_future(chat(running, stream=True))
        by_grpc = asyncio.ensure_future(running.generate(text="x"))
        await eventually(lambda: len(running.worker.calls) == 2, "both requests run")
        draining = asyncio.ensure_future(running.gateway.drain(20))
        await eventually(lambda: running.gateway.not_ready() != "", "the drain has begun")
        ready, refused = await running.http.get("/readyz"), await chat(running)
        assert (ready.status_code, refused.status_code) == (503, 503)
        assert not draining.done()
        release.set()
        assert events(await by_http)[-1] == "[DONE]"
        assert "".join(m.text for m in await by_grpc) == "abc"
        await asyncio.wait_for(draining, 10)
