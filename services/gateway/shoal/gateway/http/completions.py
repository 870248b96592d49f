"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

from shoal.api.gateway.v1 import gateway_pb2
from shoal.gateway.http.answers import Answers, open_answers
from shoal.gateway.http.exchange import Exchange, until_disconnect
from shoal.gateway.http.schema import ChatRequest, CompletionRequest
from shoal.gateway.http.shapes import DONE, ChatShape, Choice, CompletionShape, Shape
from shoal.gateway.http.translation import chat_request, completion_requests, parse_chat, parse_completion
from shoal.gateway.pipeline import Caller, Pipeline
from shoal.gateway.tenants import Authenticator
from shoal.rpc.errors import Unavailable

_EVENT_STREAM = b"text/event-stream; charset=utf-8"
_STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class CompletionHandlers:
    """The two handlers; both make requests for the pipeline and differ in shape only."""

    def __init__(
        self, pipeline: Pipeline, authenticator: Authenticator, *, max_request_bytes: int, max_request_s: float
    ) -> None:
        self._pipeline = pipeline
        self._authenticator = authenticator
        self._max_request_bytes = max_request_bytes
        self._max_request_s = max_request_s
        self._num_running = 0
        self._draining = False
        self._idle = asyncio.Event()

    async def drain(self) -> None:
        """Refuses new requests; returns when the running ones have ended."""
        self._draining = True
        if self._num_running:
            self._idle.clear()
            await self._idle.wait()

    async def chat(self, exchange: Exchange) -> None:
        """A conversation."""
        caller = self._caller(exchange)
        body = parse_chat(await exchange.body(self._max_request_bytes))
        await self._serve(exchange, caller, body, [chat_request(body)], ChatShape)

    async def completion(self, exchange: Exchange) -> None:
        """One prompt or several."""
        caller = self._caller(exchange)
        body = parse_completion(await exchange.body(self._max_request_bytes))
        await self._serve(exchange, caller, body, completion_requests(body), CompletionShape)

    def _caller(self, exchange: Exchange) -> Caller:
        if self._draining:
            raise Unavailable("this gateway is shutting down; send the request again")
        tenant = self._authenticator.authenticate(exchange.headers.get("authorization"))
        return Caller(tenant, exchange.request_id, time.monotonic() + self._max_request_s)

    async def _serve(
        self,
        exchange: Exchange,
        caller: Caller,
        body: ChatRequest | CompletionRequest,
        requests: Sequence[gateway_pb2.GenerateRequest],
        shape: type[Shape],
    ) -> None:
        async def work() -> None:
            answers = await open_answers(self._pipeline, requests, caller)
            async with answers:
                formatted = self._shape(shape, body, answers)
                if body.stream:
                    await _stream(exchange, answers, formatted)
                else:
                    await _collect(exchange, answers, formatted)

        self._num_running += 1
        try:
            await until_disconnect(exchange, work)
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    def _shape(self, shape: type[Shape], body: ChatRequest | CompletionRequest, answers: Answers) -> Shape:
        model = answers.first.admitted.model
        logprobs = body.logprobs is True if isinstance(body, ChatRequest) else body.logprobs is not None
        return shape(
            name=uuid.uuid4().hex,
            model=model.name,
            fingerprint=f"fp_{model.digest[:12]}",
            vocabulary=self._pipeline.tokenizer.vocabulary,
            logprobs=logprobs,
            usage=body.stream_options is not None and body.stream_options.include_usage,
        )


async def _stream(exchange: Exchange, answers: Answers, shape: Shape) -> None:
    await exchange.start(200, _EVENT_STREAM, _STREAM_HEADERS)
    write, chunk, read = exchange.write, shape.chunk, answers.read
    while (item := await read()) is not None:
        if data := chunk(*item):
            await write(data)
    await exchange.end(shape.usage_chunk(answers.usage()) + DONE)


async def _collect(exchange: Exchange, answers: Answers, shape: Shape) -> None:
    choices = [Choice() for _ in range(answers.num_choices)]
    while (item := await answers.read()) is not None:
        index, message = item
        choices[index].add(message)
    await exchange.answer(200, shape.body(choices, answers.usage()))
