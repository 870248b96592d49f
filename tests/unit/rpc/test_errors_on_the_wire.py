"""Errors cross a real gRPC connection and come out as what they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.api.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from shoal.rpc import errors
from shoal.rpc.server import Registration, Server, ServerOptions, serve_until_stopped, start_server
from shoal.rpc.status import from_rpc_error

OPTIONS = ServerOptions(host="127.0.0.1", port=0, drain_timeout_s=5)
NAME = "shoal.api.tokenizer.v1.TokenizerService"


async def next_digest(call: Any) -> str:
    message = await call.read()
    assert isinstance(message, tokenizer_pb2.GetVocabularyResponse)
    return message.digest


class Raiser(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Raises what a test tells it to; streams one message and then waits for `release`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.release = asyncio.Event()

    async def GetInfo(self, request: object, context: object) -> tokenizer_pb2.GetInfoResponse:
        if self.error is not None:
            raise self.error
        return tokenizer_pb2.GetInfoResponse(digest="d")

    async def Encode(self, request: object, context: object) -> tokenizer_pb2.EncodeResponse:
        return tokenizer_pb2.EncodeResponse()

    async def Decode(self, request: object, context: object) -> tokenizer_pb2.DecodeResponse:
        return tokenizer_pb2.DecodeResponse()

    async def RenderChat(self, request: object, context: object) -> tokenizer_pb2.RenderChatResponse:
        return tokenizer_pb2.RenderChatResponse()

    async def GetVocabulary(
        self, request: object, context: object
    ) -> AsyncIterator[tokenizer_pb2.GetVocabularyResponse]:
        yield tokenizer_pb2.GetVocabularyResponse(digest="first")
        await self.release.wait()
        if self.error is not None:
            raise self.error
        yield tokenizer_pb2.GetVocabularyResponse(digest="last")


class Harness:
    """A running server and a channel to it."""

    def __init__(self, servicer: Raiser, server: Server, channel: grpc.aio.Channel) -> None:
        self.servicer, self.server, self.channel = servicer, server, channel
        self.stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def health_status(self, service: str = "") -> int:
        reply: health_pb2.HealthCheckResponse = await self.health.Check(
            health_pb2.HealthCheckRequest(service=service), timeout=5
        )
        return int(reply.status)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    servicer = Raiser()
    server = await start_server(
        OPTIONS, [Registration(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer, NAME)]
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Harness(servicer, server, channel)
    await server.stop(0)


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument("sampling.top_p", "1.5 is outside (0, 1]"),
        errors.PayloadTooLarge("prompt", "10 MB; at most 1 MB"),
        errors.NotFound("no model named 'x'; there is 'y'"),
        errors.ResourceExhausted("the queue is full", retry_after_s=2.5),
        errors.Unavailable("draining", retry_after_s=0.25),
        errors.Unauthenticated("no key"),
    ],
)
async def test_a_domain_error_survives_the_wire(harness: Harness, error: errors.ShoalError) -> None:
    harness.servicer.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await harness.stub.GetInfo(tokenizer_pb2.GetInfoRequest(), timeout=5)
    back = from_rpc_error(caught.value)
    assert type(back) is type(error)
    assert (back.message, back.field, back.retry_after_s) == (error.message, error.field, error.retry_after_s)
    assert caught.value.code() is error.code


async def test_an_unknown_failure_shows_an_id_and_no_internals(harness: Harness) -> None:
    harness.servicer.error = RuntimeError("password=hunter2")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await harness.stub.GetInfo(tokenizer_pb2.GetInfoRequest(), timeout=5, metadata=(("x-request-id", "id-7"),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in (caught.value.details() or "")
    assert "id-7" in (caught.value.details() or "")


async def test_an_error_in_the_middle_of_a_stream_keeps_what_came_before(harness: Harness) -> None:
    harness.servicer.error = errors.Unavailable("the engine is gone")
    call = harness.stub.GetVocabulary(tokenizer_pb2.GetVocabularyRequest(), timeout=5)
    received = [await next_digest(call)]
    harness.servicer.release.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert received == ["first"]
    assert isinstance(from_rpc_error(caught.value), errors.Unavailable)


async def test_health_follows_the_life_of_a_server_and_a_drain_finishes_streams(harness: Harness) -> None:
    not_serving, serving = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
    assert await harness.health_status() == not_serving
    stop, draining, drained = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def drain(timeout_s: float) -> None:
        assert timeout_s == OPTIONS.drain_timeout_s
        draining.set()
        await drained.wait()

    watch = harness.health.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=10)
    assert (await watch.read()).status == not_serving
    life = asyncio.create_task(serve_until_stopped(harness.server, stop, OPTIONS, drain=drain))
    assert (await watch.read()).status == serving
    stream = harness.stub.GetVocabulary(tokenizer_pb2.GetVocabularyRequest(), timeout=10)
    await stream.read()
    stop.set()
    await asyncio.wait_for(draining.wait(), 5)
    assert await harness.health_status(NAME) == not_serving
    drained.set()
    harness.servicer.release.set()
    assert await next_digest(stream) == "last"
    await asyncio.wait_for(life, OPTIONS.drain_timeout_s / 2)  # the open health watch does not hold it


async def test_a_port_in_use_is_named() -> None:
    first = await start_server(OPTIONS, [])
    try:
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{first.port}.*in use"):
            await start_server(ServerOptions(host="127.0.0.1", port=first.port), [])
    finally:
        await first.stop(0)
