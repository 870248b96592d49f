"""The gateway as a process, with the real tokenizer service and its real vocabulary."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import httpx
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing from the stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2
from support.fake_tokenizer import FakeTokenizer
from support.fake_worker import FakeWorker, Reply, info, serve_fakes
from support.gateway_process import launch_gateway, start_gateway
from support.model import smollm2_path
from support.tokenizer_process import start_tokenizer

TEXT = "Grüße aus Kraków: 12 € für 日本語 und 👩‍👩‍👧. <|im_end|> <tag>"


class Echo(FakeWorker):
    """Answers with the prompt's own tokens, one a message."""

    async def _answer(self, request: worker_pb2.GenerateRequest, reply: Reply, context: Any) -> None:
        for index, token in enumerate(request.token_ids):
            message = worker_pb2.GenerateResponse(first_token_index=index, token_ids=[token])
            if index == len(request.token_ids) - 1:
                message.finish_reason = generation_pb2.FINISH_REASON_LENGTH
            await context.write(message)


async def test_text_of_a_real_vocabulary_equals_the_tokenizers_own() -> None:
    path = await asyncio.to_thread(smollm2_path)
    async with (
        start_tokenizer(f"--model={path}") as tokenizer,
        serve_fakes(Echo(info(vocab_size=49_152))) as mesh,
        start_gateway(f"--mesh-address={mesh}", f"--tokenizer-address={tokenizer.address}") as gateway,
        grpc.aio.insecure_channel(gateway.address) as channel,
    ):
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        ids = (await stub.Tokenize(gateway_pb2.TokenizeRequest(text=TEXT))).token_ids
        for special in (False, True):
            request = gateway_pb2.GenerateRequest(text=TEXT, include_special_tokens=special)
            text = "".join([m.text async for m in stub.Generate(request)])
            decode = gateway_pb2.DetokenizeRequest(token_ids=ids, include_special_tokens=special)
            assert text == (await stub.Detokenize(decode)).text
            assert (text == TEXT) == special
        body = {"messages": [{"role": "user", "content": "Hi €"}], "skip_special_tokens": False}
        async with httpx.AsyncClient(timeout=20) as http:
            answer = await http.post(f"http://127.0.0.1:{gateway.http_port}/v1/chat/completions", json=body)
        rendered = answer.json()["choices"][0]["message"]["content"]
        assert rendered.endswith("<|im_start|>user\nHi €<|im_end|>\n<|im_start|>assistant\n")


async def test_sigterm_finishes_streams_and_exits_0() -> None:
    worker, release = FakeWorker(), asyncio.Event()
    worker.replies[0] = Reply("abc", hold=release)
    async with (
        serve_fakes(worker, FakeTokenizer()) as mesh,
        start_gateway(f"--mesh-address={mesh}", f"--tokenizer-address={mesh}") as gateway,
        grpc.aio.insecure_channel(gateway.address) as channel,
    ):
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = gateway_pb2_grpc.GatewayServiceStub(channel)
        call = stub.Generate(gateway_pb2.GenerateRequest(text="x"))
        text = (await call.read()).text
        gateway.signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        release.set()
        while (message := await call.read()) is not EOF:
            text += message.text
        assert text == "abc"
        assert await gateway.wait_ended() == 0


async def test_health_follows_the_workers() -> None:
    async with AsyncExitStack() as stack:
        tokenizer = await stack.enter_async_context(serve_fakes(tokenizer=FakeTokenizer()))
        workers = await stack.enter_async_context(AsyncExitStack())
        mesh = await workers.enter_async_context(serve_fakes(FakeWorker()))
        flags = (f"--mesh-address={mesh}", f"--tokenizer-address={tokenizer}")
        gateway = await stack.enter_async_context(start_gateway(*flags))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(gateway.address))
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await workers.aclose()
        async with asyncio.timeout(20):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


async def test_wrong_settings_and_taken_ports_end_with_words() -> None:
    nowhere = ("--mesh-address=127.0.0.1:1", "--tokenizer-address=127.0.0.1:1")
    unknown = await launch_gateway(*nowhere, "--api-keys-file=/nonexistent")
    assert await unknown.wait_ended() == 2
    async with serve_fakes(FakeWorker()) as taken:
        port = taken.rpartition(":")[2]
        clash = await launch_gateway(*nowhere, f"--http-port={port}")
        assert await clash.wait_ended() == 1
