"""What every request goes through, whichever API it came by: check, tokenize, pick, call."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import dataclass

from opentelemetry import trace

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import iter_block_keys
from shoal.gateway import metrics
from shoal.gateway.generation import Admitted, Generation, count_request
from shoal.gateway.relay import TextRelay
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.router import Pick, PickRequest, Router
from shoal.gateway.tenants import Tenant
from shoal.gateway.tokenizing import Tokenizer
from shoal.gateway.upstream import Mesh
from shoal.gateway.validation import check_length, check_request
from shoal.gateway.workers.fleet import Fleet, ServedModel
from shoal.rpc.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what their call carries besides the request."""

    tenant: Tenant
    request_id: str
    """For logs and answers; from the client or made up."""
    deadline_s: float
    """On the clock of `time.monotonic()`."""

    def remaining_s(self) -> float:
        """Raises DeadlineExceeded when nothing is left."""
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the worker was called")
        return left_s


class Pipeline:
    """Shared by both APIs. Owned by the event loop."""

    def __init__(self, fleet: Fleet, tokenizer: Tokenizer, router: Router, loads: LoadTracker, mesh: Mesh) -> None:
        self.fleet = fleet
        self.tokenizer = tokenizer
        self._router = router
        self._loads = loads
        self._mesh = mesh
        # A client may use one id twice (a retry, a hedge) where workers need them unique. Drawn once and counted on:
        # a fresh random suffix a request was 3% of the relay's time.
        mine = secrets.token_hex(4)
        self._suffixes = (f"{mine}-{number:x}" for number in itertools.count())

    async def open(self, request: gateway_pb2.GenerateRequest, caller: Caller) -> Generation:
        """Returns once the worker's first message is here; enter the result to read it.

        Raises the domain error that a client should see; nothing is under way then.
        """
        arrived_s = time.perf_counter()
        name = ""
        try:
            model = self.fleet.model(request.model)
            name = model.name
            check_request(request, model)
            token_ids = await self._tokenize(request, caller)
            check_length(request, len(token_ids), model)
            timeout_s = caller.remaining_s()
        except BaseException as error:
            count_request(name, error)
            raise
        pick = self._pick(request, token_ids, model, caller.tenant)
        admitted = Admitted(
            request_id=caller.request_id,
            model=model,
            num_prompt_tokens=len(token_ids),
            num_completions=request.sampling.n or 1,
            pick=pick,
            arrived_s=arrived_s,
        )
        message = worker_pb2.GenerateRequest(
            request_id=f"{caller.request_id}/{next(self._suffixes)}",
            token_ids=token_ids,
            sampling=request.sampling,
            priority=request.priority,
            cache_salt=caller.tenant.cache_salt,
        )
        return await self._start(admitted, message, timeout_s)

    def open_text(self, request: gateway_pb2.GenerateRequest, generation: Generation) -> TextRelay:
        """The text side of an opened generation."""
        return TextRelay(generation, request, self.tokenizer.vocabulary)

    async def _tokenize(self, request: gateway_pb2.GenerateRequest, caller: Caller) -> list[int]:
        kind = request.WhichOneof("prompt")
        if kind == "tokens":
            return list(request.tokens.ids)
        if kind == "text":
            return await self.tokenizer.encode(request.text, timeout_s=caller.remaining_s())
        return await self.tokenizer.render(request.chat, timeout_s=caller.remaining_s())

    def _pick(
        self, request: gateway_pb2.GenerateRequest, token_ids: list[int], model: ServedModel, tenant: Tenant
    ) -> Pick:
        pick = self._router.pick(
            PickRequest(
                endpoints=self.fleet.ready_endpoints(model.name),
                block_keys=iter_block_keys(model.namespace(tenant.cache_salt), token_ids, model.block_size),
                block_size=model.block_size,
                prompt_tokens=len(token_ids),
                priority=request.priority,
                must_pin=len(self.fleet.models) > 1,
            )
        )
        metrics.PICKS.labels(pick.reason).inc()
        metrics.PROMPT_TOKENS.labels(model.name).inc(len(token_ids))
        metrics.PREDICTED_CACHED_TOKENS.labels(model.name).inc(pick.predicted_cached_tokens)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(
                {
                    "shoal.model": model.name,
                    "shoal.prompt_tokens": len(token_ids),
                    "shoal.pick.reason": pick.reason,
                    "shoal.pick.endpoints": pick.endpoints,
                    "shoal.pick.predicted_cached_tokens": pick.predicted_cached_tokens,
                    "shoal.pick.candidates": [
                        f"{c.endpoint} cached={c.cached_tokens} load={c.load.tokens}" for c in pick.scores[:16]
                    ],
                }
            )
        return pick

    async def _start(self, admitted: Admitted, message: worker_pb2.GenerateRequest, timeout_s: float) -> Generation:
        pick = admitted.pick
        call = self._mesh.generate(
            message.SerializeToString(),
            endpoints=pick.endpoints,
            request_id=admitted.request_id,
            timeout_s=timeout_s,
        )
        ticket = self._loads.admit(
            pick.endpoints[0] if pick.endpoints else None, admitted.num_prompt_tokens - pick.predicted_cached_tokens
        )
        generation = Generation(admitted, call, ticket)
        try:
            await generation.start()
        except BaseException as error:
            generation.__exit__(type(error), error, None)
            raise
        return generation
