"""Sends a request, or what is left of it, to a worker."""

from __future__ import annotations

import functools
import itertools
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opentelemetry import trace

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import KeyChain
from shoal.gateway import metrics
from shoal.gateway.attempt import Attempt, StallWatch
from shoal.gateway.journal import Journal
from shoal.gateway.picking import Picker, Prompt
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.policy import Ranking
from shoal.gateway.routing.router import Pick
from shoal.gateway.upstream import Mesh
from shoal.gateway.workers.fleet import Fleet, ServedModel
from shoal.rpc.errors import DeadlineExceeded

Avoided = Mapping[str, int]
"""Workers that a stream was lost on: address to the epoch it had."""


@dataclass(frozen=True, slots=True)
class Errand:
    """A request as every attempt at it needs it."""

    message: worker_pb2.GenerateRequest
    """With a seed, so that all attempts draw the same numbers; request_id is filled in for each. 4 bytes a token."""
    request_id: str
    model: ServedModel
    deadline_s: float
    """On the clock of `time.monotonic()`."""

    @property
    def num_completions(self) -> int:
        """n."""
        return self.message.sampling.n or 1

    def remaining_s(self) -> float:
        """Raises DeadlineExceeded when nothing is left."""
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before a worker could answer")
        return left_s


class Dispatcher:
    """Shared by all requests of a gateway. Belongs to the event loop."""

    def __init__(self, fleet: Fleet, picker: Picker, loads: LoadTracker, mesh: Mesh, watch: StallWatch) -> None:
        self.fleet = fleet
        self._picker = picker
        self._loads = loads
        self._mesh = mesh
        self._watch = watch
        # A client may use one id twice (a retry, a hedge), and a stream that moves has two attempts, where workers need
        # ids unique. Drawn once and counted on: a fresh random suffix a request was 3% of the relay's time.
        mine = secrets.token_hex(4)
        self._suffixes = (f"{mine}-{number:x}" for number in itertools.count())

    def epoch_of(self, address: str) -> int:
        """Which life of a worker is known; 0 when it cannot be reached."""
        return self.fleet.epoch_of(address)

    async def wait_changed(self) -> None:
        """Returns when a worker came, went or changed."""
        self.fleet.changed.clear()
        await self.fleet.changed.wait()

    def candidates(self, errand: Errand, avoided: Avoided) -> list[str]:
        """Workers that can take the errand, without those that have not restarted since they lost it."""
        ready = self.fleet.ready_endpoints(errand.model.name)
        return [e for e in ready if e not in avoided or avoided[e] != self.fleet.epoch_of(e)]

    def dispatch(self, errand: Errand, token_ids: Sequence[int]) -> Attempt:
        """The first attempt, all completions. `token_ids` are the errand's, in a list: quicker to read."""
        message = errand.message
        pick, chain = self._pick(errand, token_ids, self.fleet.ready_endpoints(errand.model.name), is_move=False)
        metrics.PROMPT_TOKENS.labels(errand.model.name).inc(len(token_ids))
        metrics.PREDICTED_CACHED_TOKENS.labels(errand.model.name).inc(pick.predicted_cached_tokens)
        _trace_pick(errand, pick)
        return self._send(errand, message, pick, chain)

    def rank(
        self, errand: Errand, journal: Journal, choices: Sequence[int], endpoints: list[str], chain: KeyChain | None
    ) -> Ranking:
        """What `resume` would find. chain: of the attempt under way, as long as nothing was delivered."""
        message = errand.message
        known: Sequence[int] = message.token_ids
        if journal.begun:
            chain, known = None, [*known, *journal.completions[choices[0]].token_ids]
        return self._picker.rank(Prompt(errand.model, known, message.cache_salt, message.priority), endpoints, chain)

    def resume(self, errand: Errand, journal: Journal, choices: Sequence[int], endpoints: list[str]) -> Attempt:
        """A later attempt on one of `endpoints`: one completion after its delivered tokens, or, as long as nothing was
        delivered at all, everything."""
        message = errand.message
        if journal.begun:
            [choice] = choices
            message = worker_pb2.GenerateRequest()
            message.CopyFrom(errand.message)
            message.choice = choice
            message.resume_token_ids.extend(journal.completions[choice].token_ids)
            message.sampling.n = 1
            message.sampling.ClearField("prompt_logprobs")  # delivered, and they would keep the cache from being used
        known = [*message.token_ids, *message.resume_token_ids]
        return self._send(errand, message, *self._pick(errand, known, endpoints, is_move=True))

    def _pick(
        self, errand: Errand, token_ids: Sequence[int], endpoints: list[str], *, is_move: bool
    ) -> tuple[Pick, KeyChain]:
        message = errand.message
        prompt = Prompt(errand.model, token_ids, message.cache_salt, message.priority)
        return self._picker.pick(prompt, endpoints, must_pin=is_move or len(self.fleet.models) > 1)

    def _send(self, errand: Errand, message: worker_pb2.GenerateRequest, pick: Pick, chain: KeyChain) -> Attempt:
        message.request_id = f"{errand.request_id}/{next(self._suffixes)}"
        call = self._mesh.generate(
            message.SerializeToString(),
            endpoints=pick.endpoints,
            request_id=errand.request_id,
            timeout_s=errand.remaining_s(),
            prefix_hash=pick.prefix_hash,
        )
        first = pick.endpoints[0] if pick.endpoints else None
        num_tokens = len(message.token_ids) + len(message.resume_token_ids)
        num_uncached = num_tokens - pick.predicted_cached_tokens
        ticket = self._loads.admit(first, num_uncached, num_prompt_tokens=num_tokens)
        epoch = self.fleet.epoch_of(first) if first else 0
        attempt = Attempt(call, ticket, pick, epoch, self._watch, chain)
        attempt.on_outcome = functools.partial(self._settle, chain)
        return attempt

    def _settle(self, chain: KeyChain, attempt: Attempt) -> None:
        """Corrects the index where Envoy decided otherwise, and compares what was predicted with what was."""
        record = attempt.record
        if record.first_message_s is None:
            self._picker.correct(attempt.pick, chain, None)
        elif record.served_elsewhere:
            self._picker.correct(attempt.pick, chain, attempt.worker)
        if record.cached_tokens is not None and record.worker:
            metrics.WORKER_PREDICTED_CACHED_TOKENS.labels(record.worker).inc(record.predicted_cached_tokens)
            metrics.WORKER_CACHED_TOKENS.labels(record.worker).inc(record.cached_tokens)
            drift = record.predicted_cached_tokens - record.cached_tokens
            metrics.HIT_DRIFT_TOKENS.labels(record.worker).observe(drift)


def _trace_pick(errand: Errand, pick: Pick) -> None:
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attributes(
        {
            "shoal.model": errand.model.name,
            "shoal.prompt_tokens": len(errand.message.token_ids),
            "shoal.pick.reason": pick.reason,
            "shoal.pick.endpoints": pick.endpoints,
            "shoal.pick.predicted_cached_tokens": pick.predicted_cached_tokens,
            "shoal.pick.candidates": [
                f"{score.candidate.endpoint} cached={score.candidate.cached_tokens} load={score.candidate.load.tokens}"
                for score in pick.scores[:16]
            ],
            "shoal.pick.prices_s": [
                " ".join(f"{name}={seconds:.4f}" for name, seconds in score.terms.items()) for score in pick.scores[:16]
            ],
        }
    )
