"""The asynchronous client. `sync_client` is the same over `grpc`; everything they share is in `calls`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing from the stubs

from shoal.api.gateway.v1 import explain_pb2, gateway_pb2, gateway_pb2_grpc
from shoal.client.calls import DEFAULT_TIMEOUT_S, make_settings
from shoal.client.decoding import decode_model
from shoal.client.explanations import Explanation, decode_explanation
from shoal.client.options import Options
from shoal.client.requests import MessageLike, build_tokenize, checked_ids
from shoal.client.results import Chunk, Completion, Model
from shoal.client.retry import RetryPolicy
from shoal.client.streaming import StreamCourse, resume_stream, start_stream

_R = TypeVar("_R")
_Open = Callable[[gateway_pb2.GenerateRequest, float], Any]


class AsyncStream(AsyncIterator[Chunk]):
    """Chunks of one answer as they arrive. Made by `AsyncClient.stream` and `AsyncClient.chat_stream`.

    Leaving the `async with` block, `close`, or cancelling the task that iterates cancels the request on the server.
    """

    def __init__(self, course: StreamCourse, open_call: _Open, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._course = course
        self._open = open_call
        self._sleep = sleep
        self._ended = course.is_complete
        self._call: Any = None if self._ended else open_call(course.request, course.course.remaining_s)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk. Raises a `ShoalError` when the request failed."""
        while not (self._ended or self._course.closed):
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                await self._recover(error)
            except asyncio.CancelledError:
                if not self._course.closed or _task_is_cancelled():
                    raise
            else:
                if message is EOF:
                    self._ended = True
                    self._course.on_end()
                elif (chunk := self._take(message)) is not None:
                    return chunk
        raise StopAsyncIteration

    async def completion(self) -> Completion:
        """Reads the stream to its end and returns the whole answer; after `close`, what had arrived by then."""
        async for _ in self:
            pass
        return self._course.collector.completion()

    @property
    def resume_token(self) -> bytes:
        """Bytes to keep: `AsyncClient.resume` goes on behind this stream's last chunk, also in another process.

        They hold the request and what came, and are as secret as these; a stream of n tokens takes some 5 n bytes, more
        with log-probabilities. Raises InvalidArgument for a stream with `resumable=False`.
        """
        return self._course.resume_token()

    @property
    def num_resumes(self) -> int:
        """How often the stream lost its gateway or connection so far, and went on."""
        return self._course.num_resumes

    def close(self) -> None:
        """Cancels what is left of the request. Safe to repeat."""
        self._course.closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def _take(self, message: gateway_pb2.GenerateResponse) -> Chunk | None:
        try:
            return self._course.on_message(message)
        except BaseException:
            self.close()
            raise

    async def _recover(self, error: grpc.RpcError) -> None:
        if self._course.closed:
            return
        try:
            wait_s = self._course.on_error(error)
        except BaseException:
            self._ended = True
            raise
        if wait_s is None:
            self._ended = True
            return
        await self._sleep(wait_s)
        if not self._course.closed:
            self._call = self._open(self._course.request, self._course.course.remaining_s)


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncClient:
    """Talks to one gateway from an event loop; an async context manager that closes its channel.

    async with AsyncClient("http://127.0.0.1:8080") as client:
        async with client.chat_stream([{"role": "user", "content": "Hello"}]) as stream:
            async for chunk in stream:
                print(chunk.text, end="", flush=True)
    """

    def __init__(
        self,
        endpoint: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        root_certificates: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """The arguments are those of `Client`. May be made outside an event loop; the first call binds it to one."""
        self._settings = make_settings(endpoint, api_key, timeout_s, retry, root_certificates, clock)
        self._sleep = sleep
        self._channel: grpc.aio.Channel | None = None

    @property
    def endpoint(self) -> str:
        """The endpoint as a URL."""
        return self._settings.endpoint.url

    async def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Iterable[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> Completion:
        """Generates a whole completion. The contract is that of `Client.generate`."""
        async with self.stream(prompt, token_ids=token_ids, messages=messages, **options) as stream:
            return await stream.completion()

    def stream(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Iterable[MessageLike] | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """Like `generate`, but returns at once. Use it in an `async with` block; call it from a running event loop."""
        course = start_stream(self._settings, prompt, token_ids, messages, options)
        return AsyncStream(course, self._open, self._sleep)

    def resume(self, token: bytes, *, timeout_s: float | None = None) -> AsyncStream:
        """Goes on with the stream that gave `token`: its chunks are those that this one still owed, its `completion()`
        is the whole answer. Any client of the same mesh and tenant may do it, once or more.

        Raises InvalidArgument for bytes that are no token.
        """
        return AsyncStream(resume_stream(self._settings, token, timeout_s), self._open, self._sleep)

    async def chat(self, messages: Iterable[MessageLike], **options: Unpack[Options]) -> Completion:
        """The next turn of a conversation. See `generate`; `Completion.message` is ready to be appended."""
        return await self.generate(messages=messages, **options)

    def chat_stream(self, messages: Iterable[MessageLike], **options: Unpack[Options]) -> AsyncStream:
        """The next turn of a conversation, as it comes. See `stream`."""
        return self.stream(messages=messages, **options)

    async def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Iterable[MessageLike] | None = None,
        model: str = "",
        add_special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> tuple[int, ...]:
        """The token ids that `generate` would use for a text or a conversation."""
        request = build_tokenize(text, messages, model, add_special_tokens)
        return tuple((await self._unary(self._stub().Tokenize, request, timeout_s)).token_ids)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str = "",
        include_special_tokens: bool = False,
        timeout_s: float | None = None,
    ) -> str:
        """The text of token ids."""
        request = gateway_pb2.DetokenizeRequest(
            model=model, token_ids=checked_ids(token_ids), include_special_tokens=include_special_tokens
        )
        return (await self._unary(self._stub().Detokenize, request, timeout_s)).text

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """The models that can be asked for."""
        response = await self._unary(self._stub().ListModels, gateway_pb2.ListModelsRequest(), timeout_s)
        return tuple(decode_model(model) for model in response.models)

    async def model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """One model. Raises NotFound naming those there are."""
        response = await self._unary(self._stub().GetModel, gateway_pb2.GetModelRequest(name=name), timeout_s)
        return decode_model(response.model)

    async def explain(self, request_id: str, *, timeout_s: float | None = None) -> tuple[Explanation, ...]:
        """Why a recent request went where it went, whichever gateway served it; several if its id was used again.

        Raises NotFound saying how many requests are remembered.
        """
        request = explain_pb2.ExplainRequest(request_id=request_id)
        response = await self._unary(self._stub().Explain, request, timeout_s)
        return tuple(map(decode_explanation, response.explanations))

    async def close(self) -> None:
        """Closes the channel; calls still open are cancelled. Safe to repeat."""
        self._settings.closed.set()
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _stub(self) -> gateway_pb2_grpc.GatewayServiceAsyncStub:
        self._settings.check_open()
        if self._channel is None:  # an aio channel belongs to the loop it is made in
            target, options = self._settings.endpoint.target, self._settings.channel_options
            credentials = self._settings.credentials
            self._channel = (
                grpc.aio.secure_channel(target, credentials, options=options)
                if credentials is not None
                else grpc.aio.insecure_channel(target, options=options)
            )
        return gateway_pb2_grpc.GatewayServiceStub(self._channel)

    def _open(self, request: gateway_pb2.GenerateRequest, timeout_s: float) -> Any:
        return self._stub().Generate(request, timeout=timeout_s, metadata=self._settings.metadata)

    async def _unary(self, method: Callable[..., Awaitable[_R]], request: object, timeout_s: float | None) -> _R:
        course = self._settings.start(timeout_s)
        while True:
            try:
                response = await method(request, timeout=course.remaining_s, metadata=self._settings.metadata)
            except grpc.RpcError as error:
                await self._sleep(course.wait_after(error))
            else:
                course.succeeded()
                return response
