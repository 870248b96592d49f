"""gRPC to domain and back, nothing else."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from opentelemetry import propagate

from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc
from shoal.blocks import namespace_key
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_client import EngineClient
from shoal.model_worker.failure import Failure
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.messages import EngineInfo
from shoal.model_worker.metrics import WorkerMetrics
from shoal.model_worker.request import Request
from shoal.model_worker.responses import ResponseWriter, ended_response, info_response
from shoal.model_worker.sampling.params import MAX_CHOICES
from shoal.model_worker.sampling.validate import from_proto
from shoal.model_worker.scheduler import queue_full
from shoal.model_worker.stall_watch import StallWatch
from shoal.model_worker.tenants import tenant_of
from shoal.rpc.errors import BY_REASON, Draining, Internal, InvalidArgument, ShoalError, Unavailable
from shoal.telemetry import is_tracing

MAX_CACHE_SALT_BYTES: Final = 64
_DRAINED = Failure("DRAINING", "the worker is shutting down; resume the request on another one", "", 1.0)


class ModelWorkerServicer(worker_pb2_grpc.ModelWorkerServiceServicer):
    """Answers the gateway. Belongs to the event loop of its engine client."""

    def __init__(
        self,
        config: WorkerConfig,
        engine: EngineClient,
        kv_events: KvEventHub,
        metrics: WorkerMetrics,
    ) -> None:
        self._config = config
        self._engine = engine
        self._kv_events = kv_events
        self._metrics = metrics
        self._stop_serving: Callable[[], Awaitable[None]] | None = None
        self._draining = False
        self._stall_watch = StallWatch(config.client_stall_timeout_s)
        self._namespace_key = lru_cache(maxsize=4096)(self._make_namespace_key)
        self._tenant = lru_cache(maxsize=4096)(tenant_of)

    def on_drain(self, stop_serving: Callable[[], Awaitable[None]]) -> None:
        """What to call first when a drain begins: it turns health checks to NOT_SERVING."""
        self._stop_serving = stop_serving

    async def watch_clients(self) -> None:
        """Cuts off clients that do not read; run it as long as the server runs."""
        await self._stall_watch.run()

    async def GetInfo(self, request: worker_pb2.GetInfoRequest, context: Any) -> worker_pb2.GetInfoResponse:  # noqa: N802
        """What this worker serves."""
        events, problem = self._kv_events, self._metrics.kv_store.problem
        return info_response(self._config.model_name, self._info(), events.epoch, events.heartbeat_s, problem)

    async def Generate(  # type: ignore[override]  # the stubs know only of generators  # noqa: N802
        self, request: worker_pb2.GenerateRequest, context: Any
    ) -> None:
        """Writes to the context rather than yielding: a fifth less work a message."""
        if self._draining:
            raise Draining("the worker is draining; send the request to another one")
        engine_request = self._to_request(request, context.time_remaining())
        if (resumed := engine_request.resume_token_ids) and (
            reason := engine_request.finish_reason(len(resumed), resumed[-1], frozenset(self._info().eos_token_ids))
        ):
            await context.write(ended_response(engine_request, reason))
            return
        self._refuse_when_full()
        stream = self._engine.submit(engine_request)
        writer = ResponseWriter(stream)
        try:
            with self._stall_watch.watched() as call:
                while not writer.complete:
                    await stream.wait()
                    call.write_began_s = time.monotonic()
                    for message in writer.take():
                        await context.write(message)
                    call.write_began_s = None
                    if stream.failure is not None:
                        if stream.failure.reason == "WORKER_FAILED" and not writer.started:
                            # After headers Envoy does not repeat a call. It must not: if the request killed this
                            # engine, it would kill two more before the gateway hears of it.
                            await context.send_initial_metadata(())
                        raise _to_error(stream.failure)
        finally:
            # Also what was not sent: ending a call whose client does not read can take until the client goes away.
            self._engine.close(stream)

    async def SubscribeKvEvents(  # noqa: N802
        self, request: worker_pb2.SubscribeKvEventsRequest, context: Any
    ) -> AsyncIterator[worker_pb2.SubscribeKvEventsResponse]:
        """Ends only when the worker does."""
        async for response in self._kv_events.follow(request.epoch, request.start_seq):
            yield response
        raise Unavailable("the worker is shutting down")

    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainResponse:  # noqa: N802
        """Stops taking requests for good."""
        timeout_s = request.timeout_ms / 1e3 if request.timeout_ms else None
        return worker_pb2.DrainResponse(cancelled_requests=await self.drain(timeout_s))

    async def drain(self, timeout_s: float | None) -> int:
        """Refuses new requests and waits for the running ones; returns how many had to be cancelled."""
        self._draining = True
        if self._stop_serving is not None:
            await self._stop_serving()
        try:
            await asyncio.wait_for(self._engine.wait_idle(), timeout_s)
        except TimeoutError:
            return self._engine.fail_all(_DRAINED)
        return 0

    def _refuse_when_full(self) -> None:
        """Keeps what waits for the engine bounded; the scheduler refuses by tokens as well."""
        config, stats = self._config, self._engine.stats
        if self._engine.num_requests >= config.max_num_seqs + config.max_queued_requests:
            excess = stats.num_waiting_tokens / max(1, stats.num_waiting)
            self._metrics.failed("RESOURCE_EXHAUSTED")
            raise _to_error(queue_full(excess, stats.queue_tokens_per_s, stats.num_waiting, stats.num_waiting_tokens))

    def _to_request(self, request: worker_pb2.GenerateRequest, time_remaining_s: float | None) -> Request:
        """Raises InvalidArgument naming the field."""
        info, now_s = self._info(), time.monotonic()
        prompt, resumed = tuple(request.token_ids), tuple(request.resume_token_ids)
        if not prompt:
            raise InvalidArgument("token_ids", "the prompt is empty; at least one token is needed")
        if len(prompt) >= info.max_model_len:
            raise InvalidArgument(
                "token_ids",
                f"{len(prompt)} prompt tokens leave no room for output; max_model_len is {info.max_model_len}, so at "
                f"most {info.max_model_len - 1} are allowed",
            )
        _check_token_ids("token_ids", prompt, info.vocab_size)
        _check_token_ids("resume_token_ids", resumed, info.vocab_size)
        if len(request.cache_salt) > MAX_CACHE_SALT_BYTES:
            raise InvalidArgument(
                "cache_salt", f"{len(request.cache_salt)} bytes; at most {MAX_CACHE_SALT_BYTES} are allowed"
            )
        sampling = from_proto(
            request.sampling,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            num_prompt_tokens=len(prompt),
        )
        if resumed and sampling.n > 1:
            raise InvalidArgument("resume_token_ids", f"{len(resumed)} tokens with n = {sampling.n}; only with n = 1")
        if len(resumed) > sampling.max_tokens:
            raise InvalidArgument(
                "resume_token_ids", f"{len(resumed)} tokens are more than max_tokens = {sampling.max_tokens}"
            )
        if request.choice and (sampling.n > 1 or request.choice >= MAX_CHOICES):
            raise InvalidArgument(
                "choice", f"{request.choice} with n = {sampling.n}; at most {MAX_CHOICES - 1}, and only with n = 1"
            )
        return Request(
            stream_id=0,
            request_id=request.request_id,
            prompt_token_ids=prompt,
            sampling=sampling,
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            namespace_key=self._namespace_key(request.cache_salt),
            tenant=self._tenant(request.cache_salt),
            traceparent=_traceparent(),
            arrival_s=now_s,
            resume_token_ids=resumed,
            first_choice=request.choice,
            priority=request.priority,
            deadline_s=None if time_remaining_s is None else now_s + time_remaining_s,
        )

    def _info(self) -> EngineInfo:
        if self._engine.info is None:
            raise Unavailable("the worker is still loading its model")
        return self._engine.info

    def _make_namespace_key(self, cache_salt: bytes) -> bytes:
        info = self._info()
        return namespace_key(info.model_digest, info.kv_layout, "", cache_salt)


def _traceparent() -> str:
    carrier: dict[str, str] = {}
    if is_tracing():
        propagate.inject(carrier)
    return carrier.get("traceparent", "")


def _check_token_ids(field: str, token_ids: tuple[int, ...], vocab_size: int) -> None:
    if token_ids and max(token_ids) >= vocab_size:
        index = next(i for i, token_id in enumerate(token_ids) if token_id >= vocab_size)
        raise InvalidArgument(
            f"{field}[{index}]", f"token id {token_ids[index]} is outside [0, {vocab_size - 1}], the model's vocabulary"
        )


def _to_error(failure: Failure) -> ShoalError:
    kind = BY_REASON.get(failure.reason, Internal)
    if kind is InvalidArgument:
        return InvalidArgument(failure.field, failure.message.removeprefix(f"{failure.field}: "))
    error = kind(failure.message)
    error.retry_after_s = failure.retry_after_s or None
    return error
