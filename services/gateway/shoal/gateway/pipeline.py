"""What every request goes through, whichever API it came by: check, tokenize, wait for its turn, pick, call."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.gateway.admission.admission import Admission
from shoal.gateway.admission.permit import Ask, Permit
from shoal.gateway.dispatch import Dispatcher, Errand
from shoal.gateway.explain.records import RequestRecord
from shoal.gateway.explain.ring import RecentRequests
from shoal.gateway.failover import FailoverConfig, MoveGate
from shoal.gateway.generation import Admitted, Generation, count_request
from shoal.gateway.relay import TextRelay
from shoal.gateway.stream import Stream
from shoal.gateway.tenants import Tenant
from shoal.gateway.tokenizing import Tokenizer
from shoal.gateway.validation import check_length, check_request
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import DeadlineExceeded, ResourceExhausted


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


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was checked and may go."""

    errand: Errand
    token_ids: list[int]
    """Of the prompt, once more: a list is quicker to read than the message."""
    record: RequestRecord
    resume: gateway_pb2.Resume | None
    """What the client has of the answer."""


class Pipeline:
    """Shared by both APIs. Owned by the event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        dispatcher: Dispatcher,
        failover: FailoverConfig,
        recent: RecentRequests,
        admission: Admission | None,
    ) -> None:
        """Without `admission` every request goes to the workers at once."""
        self.fleet = dispatcher.fleet
        self.tokenizer = tokenizer
        self._dispatcher = dispatcher
        self._failover = failover
        self._recent = recent
        self._admission = admission
        self.gate = MoveGate(failover)

    async def open(self, request: gateway_pb2.GenerateRequest, caller: Caller) -> Generation:
        """Returns once the worker's first message is here; enter the result to read it.

        Raises the domain error that a client should see; nothing is under way then.
        """
        record = self._recent.begin(caller.tenant.name, caller.request_id)
        name = ""
        try:
            model = self.fleet.model(request.model)
            name = record.model = model.name
            record.num_completions = request.sampling.n or 1
            check_request(request, model)
            token_ids = await self.tokenizer.prompt_ids(request, timeout_s=caller.remaining_s())
            record.num_prompt_tokens = len(token_ids)
            check_length(request, len(token_ids), model)
            errand = _errand(request, token_ids, model, caller)
            resume = request.resume if request.HasField("resume") else None
            permit = None
            if self._admission is not None:
                ask = _ask(errand, caller.tenant, request.priority, resume)
                permit = self._admission.enter_now(ask)
                if permit is None:
                    token_ids = []  # some 36 bytes a token that the message holds in 4
                    permit = await self._admission.enter(ask)
                    record.queue_s = permit.waited_s
                    token_ids = list(errand.message.token_ids)
            return await self._start(Job(errand, token_ids, record, resume), permit)
        except BaseException as error:
            record.end(count_request(name, error), 0)
            raise

    def open_text(self, request: gateway_pb2.GenerateRequest, generation: Generation) -> TextRelay:
        """The text side of an opened generation."""
        return TextRelay(generation, request, self.tokenizer.vocabulary)

    async def _start(self, job: Job, permit: Permit | None) -> Generation:
        """Sends the request; once more after each wait for another turn, when no worker had room for it."""
        while True:
            generation = None
            try:
                generation = self._dispatch(job, permit)
                await generation.start()
                return generation
            except BaseException as error:
                if generation is not None:
                    generation.withdraw()
                if permit is None or self._admission is None:
                    raise
                if not isinstance(error, ResourceExhausted):
                    permit.close()
                    raise
                permit = await self._admission.enter_again(permit, error)
                job.record.queue_s = permit.waited_s

    def _dispatch(self, job: Job, permit: Permit | None) -> Generation:
        errand, record, attempt = job.errand, job.record, None
        if job.resume is None:
            attempt = self._dispatcher.dispatch(errand, job.token_ids)
            if permit is not None:
                permit.dispatched(attempt.pick.predicted_cached_tokens)
        stream = Stream(errand, self._dispatcher, self.gate, self._failover, record, job.resume)
        return Generation(Admitted(errand.request_id, errand.model, record.arrived_s, permit), stream, attempt)


def _ask(errand: Errand, tenant: Tenant, priority: int, resume: gateway_pb2.Resume | None) -> Ask:
    """What decides about its turn."""
    message = errand.message
    running = [] if resume is None else [completion for completion in resume.completions if not completion.finished]
    return Ask(
        model=errand.model.name,
        tenant=tenant.name,
        priority=priority,
        num_tokens=len(message.token_ids) + sum(len(completion.token_ids) for completion in running),
        num_sequences=len(running) or errand.num_completions,
        max_output_tokens=message.sampling.max_tokens if message.sampling.HasField("max_tokens") else None,
        deadline_s=errand.deadline_s,
    )


def _errand(request: gateway_pb2.GenerateRequest, token_ids: list[int], model: ServedModel, caller: Caller) -> Errand:
    """What every attempt has in common, the random numbers included.

    A worker knows no tenants, and lets better priorities pass and even preempt: where there are tenants, priorities
    stay in the gateway, which orders each tenant's own requests by them.
    """
    message = worker_pb2.GenerateRequest(
        token_ids=token_ids,
        sampling=request.sampling,
        priority=0 if caller.tenant.name else request.priority,
        cache_salt=caller.tenant.cache_salt,
    )
    if not message.sampling.HasField("seed"):
        message.sampling.seed = secrets.randbits(64)
    return Errand(message, caller.request_id, model, caller.deadline_s)
