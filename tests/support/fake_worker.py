"""A model worker that does what a test says: real gRPC on loopback, no engine. One token is one UTF-8 byte."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc
from shoal.rpc.errors import ShoalError
from shoal.rpc.status import to_status
from support.fake_endpoints import FakeEndpoint
from support.fake_tokenizer import EOS, VOCAB_SIZE, FakeTokenizer

MODEL = "fake-model"
WAIT_S = 10.0
"""Longest a fake waits for a test."""


@dataclass(frozen=True)
class Reply:
    """Answers each of the n choices with the bytes of `text` as token ids, choices interleaved.

    A resumed request gets the rest of them.
    """

    text: str | bytes = "Hello"
    tokens_per_message: int = 1
    ends_with_eos: bool = True
    """A last message with the end-of-sequence token; else the reason is LENGTH."""
    hold: asyncio.Event | None = None
    """Waited for after the first message of each choice."""
    hold_first: asyncio.Event | None = None
    """Waited for before anything."""
    fail: ShoalError | None = None
    """Raised before the first message, or after `fail_after` of them."""
    fail_after: int = 0
    finish: bool = True
    """Without it the last message is left out, as a broken worker might."""
    cached_tokens: int = 0
    served_by: str = ""


@dataclass
class Call:
    """One Generate call as it arrived."""

    request: worker_pb2.GenerateRequest
    metadata: dict[str, Any]
    time_remaining_s: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False


def info(**changes: Any) -> worker_pb2.GetInfoResponse:
    """What a fake worker says of itself."""
    values: dict[str, Any] = {
        "model": MODEL,
        "model_digest": "d1" * 32,
        "kv_layout": "fake-v1",
        "block_size": 4,
        "num_blocks": 64,
        "max_model_len": 1024,
        "vocab_size": VOCAB_SIZE,
        "epoch": 1,
        "max_num_seqs": 8,
        "eos_token_ids": [EOS],
        "device": "cpu",
        "dtype": "float32",
    }
    return worker_pb2.GetInfoResponse(**(values | changes))


class FakeWorker(worker_pb2_grpc.ModelWorkerServiceServicer):
    """Replies are used up one a call; the last one stays."""

    def __init__(self, described: worker_pb2.GetInfoResponse | None = None) -> None:
        self.info = described or info()
        self.replies: deque[Reply] = deque([Reply()])
        self.calls: list[Call] = []
        self.called = asyncio.Event()
        self.address = ""
        self.subscriptions: list[worker_pb2.SubscribeKvEventsRequest] = []
        self.subscribed = asyncio.Event()
        self.has_snapshot = True
        """Answers a subscription from nothing with an empty cache; else with what the test publishes."""
        self.refuses_events = False
        """Ends every new subscription at once."""
        self._events: asyncio.Queue[worker_pb2.SubscribeKvEventsResponse | None] = asyncio.Queue()

    def publish(self, *events: worker_pb2.SubscribeKvEventsResponse) -> None:
        """Sends events to the subscriber."""
        for event in events:
            self._events.put_nowait(event)

    def end_subscription(self) -> None:
        """Ends the subscriber's stream."""
        self._events.put_nowait(None)

    async def GetInfo(self, request: worker_pb2.GetInfoRequest, context: Any) -> worker_pb2.GetInfoResponse:
        return self.info

    async def SubscribeKvEvents(self, request: worker_pb2.SubscribeKvEventsRequest, context: Any) -> AsyncIterator[Any]:
        self.subscriptions.append(request)
        self.subscribed.set()
        if self.refuses_events:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no events today")
        if self.has_snapshot and request.start_seq == 0:
            snapshot = worker_pb2.KvSnapshot(tier=worker_pb2.TIER_DEVICE, complete=True)
            yield worker_pb2.SubscribeKvEventsResponse(epoch=self.info.epoch, seq=0, snapshot=snapshot)
        while (event := await self._events.get()) is not None:
            yield event

    async def Drain(self, request: Any, context: Any) -> worker_pb2.DrainResponse:
        return worker_pb2.DrainResponse()

    async def Generate(self, request: worker_pb2.GenerateRequest, context: Any) -> None:  # type: ignore[override]
        metadata = dict(context.invocation_metadata())
        call = Call(request, metadata, context.time_remaining())
        self.calls.append(call)
        self.called.set()
        reply = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        try:
            await self._answer(request, reply, context)
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        except ShoalError as error:
            await context.abort_with_status(to_status(error))
        finally:
            call.ended.set()

    async def _answer(self, request: worker_pb2.GenerateRequest, reply: Reply, context: Any) -> None:
        if reply.served_by:
            await context.send_initial_metadata((("x-shoal-served-by", reply.served_by),))
        if reply.hold_first is not None:
            await asyncio.wait_for(reply.hold_first.wait(), WAIT_S)
        messages = make_messages(request, reply)
        num_choices = request.sampling.n or 1
        for index, message in enumerate(messages):
            if reply.fail is not None and index == reply.fail_after:
                raise reply.fail
            if index == num_choices and reply.hold is not None:
                await asyncio.wait_for(reply.hold.wait(), WAIT_S)
            await context.write(message)
        if reply.fail is not None and reply.fail_after >= len(messages):
            raise reply.fail


def make_messages(request: worker_pb2.GenerateRequest, reply: Reply) -> list[worker_pb2.GenerateResponse]:
    """All messages of one answer."""
    data = reply.text.encode() if isinstance(reply.text, str) else reply.text
    num_choices, step = request.sampling.n or 1, reply.tokens_per_message
    limit = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else len(data) + 1
    ids = [*data, EOS][:limit] if reply.ends_with_eos else list(data)[:limit]
    resumed = len(request.resume_token_ids)
    assert ids[:resumed] == list(request.resume_token_ids)
    messages = []
    for start in range(resumed, len(ids), step):
        for choice in range(request.choice, request.choice + num_choices):
            part = ids[start : start + step]
            message = worker_pb2.GenerateResponse(choice=choice, first_token_index=start, token_ids=part)
            if request.sampling.HasField("logprobs"):
                message.logprobs.extend(_logprobs(token, request.sampling.logprobs) for token in part)
            if start + step >= len(ids) and reply.finish:
                if part[-1] == EOS:
                    message.stop_token_id = EOS
                    message.finish_reason = generation_pb2.FINISH_REASON_STOP
                else:
                    message.finish_reason = generation_pb2.FINISH_REASON_LENGTH
            messages.append(message)
    usage = {"prompt_tokens": len(request.token_ids), "cached_tokens": reply.cached_tokens}
    if not messages:
        return []
    messages[0].usage.CopyFrom(generation_pb2.Usage(**usage, completion_tokens=resumed + len(messages[0].token_ids)))
    messages[-1].usage.CopyFrom(generation_pb2.Usage(**usage, completion_tokens=num_choices * len(ids)))
    return messages


def _logprobs(token_id: int, num_top: int) -> generation_pb2.PositionLogprobs:
    top = [
        generation_pb2.TokenLogprob(token_id=(token_id + i) % 256, logprob=-0.5 - i, rank=i + 1) for i in range(num_top)
    ]
    return generation_pb2.PositionLogprobs(
        token=generation_pb2.TokenLogprob(token_id=token_id, logprob=-0.5, rank=1), top=top
    )


@asynccontextmanager
async def serve_fakes(
    worker: FakeWorker | None = None,
    tokenizer: FakeTokenizer | None = None,
    *,
    port: int = 0,
    beside: FakeEndpoint | None = None,
) -> AsyncIterator[str]:
    """Serves a worker, a tokenizer or both on one port, as Envoy's mesh listener would. Yields the address.

    beside: has the health and the load reports that Envoy asks of workers behind it.
    """
    server = grpc.aio.server()
    if beside is not None:
        await beside.add_reports_to(server)
    if worker is not None:
        worker_pb2_grpc.add_ModelWorkerServiceServicer_to_server(worker, server)
    if tokenizer is not None:
        tokenizer.add_to_server(server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    if worker is not None:
        worker.address = f"127.0.0.1:{port}"
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
