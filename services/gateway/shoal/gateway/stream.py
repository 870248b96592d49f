"""What all parts of one request share on its way through workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from shoal.api.gateway.v1 import gateway_pb2
from shoal.blocks import KeyChain
from shoal.gateway import metrics
from shoal.gateway.attempt import Attempt
from shoal.gateway.dispatch import Avoided, Errand
from shoal.gateway.explain.records import RequestRecord
from shoal.gateway.failover import POISON_DEATHS, FailoverConfig, MoveGate
from shoal.gateway.journal import Journal, Message
from shoal.gateway.routing.policy import Ranking
from shoal.rpc.errors import Internal, ShoalError, StreamLost, Unavailable

_log = structlog.get_logger("shoal.gateway.failover")


class Workers(Protocol):
    """Where a stream can go; see `dispatch.Dispatcher`."""

    def candidates(self, errand: Errand, avoided: Avoided) -> list[str]:
        """Workers that can take the errand, but for those avoided."""
        ...

    def rank(
        self, errand: Errand, journal: Journal, choices: Sequence[int], endpoints: list[str], chain: KeyChain | None
    ) -> Ranking:
        """What `resume` would find."""
        ...

    def resume(self, errand: Errand, journal: Journal, choices: Sequence[int], endpoints: list[str]) -> Attempt:
        """Sends what is left of it."""
        ...

    def epoch_of(self, address: str) -> int:
        """Which life of a worker is known; 0 when it cannot be reached."""
        ...

    async def wait_changed(self) -> None:
        """Returns when a worker came, went or changed."""
        ...


class Stream:
    """What the legs of one request share."""

    __slots__ = (
        "config", "errand", "gate", "has_moved", "journal", "num_cached_tokens", "num_prompt_tokens", "record",
        "suspects", "workers",
    )  # fmt: skip

    def __init__(
        self,
        errand: Errand,
        workers: Workers,
        gate: MoveGate,
        config: FailoverConfig,
        record: RequestRecord,
        resume: gateway_pb2.Resume | None = None,
    ) -> None:
        """resume: what the client has already; checked by `validation`."""
        self.errand = errand
        self.workers = workers
        self.gate = gate
        self.config = config
        self.record = record
        self.journal = Journal(errand.num_completions)
        self.has_moved = False
        """Whether an attempt was lost after something was delivered, at this gateway or before."""
        self.num_prompt_tokens = len(errand.message.token_ids)
        self.num_cached_tokens = 0
        """As the first message said: what the client is told holds, whoever goes on."""
        self.suspects: dict[tuple[str, int], bool] = {}
        """Workers (address, epoch) lost since the stream last made progress, and whether they are known to be dead."""
        if resume is not None:
            self.journal.restore(resume)
            self.has_moved = True
            self.num_cached_tokens = resume.cached_tokens

    def count_usage(self, message: Message) -> None:
        """Writes the counts of the whole request into its last message."""
        message.usage.prompt_tokens = self.num_prompt_tokens
        message.usage.cached_tokens = self.num_cached_tokens
        message.usage.completion_tokens = self.journal.num_tokens

    def suspect(self, attempt: Attempt, *, is_dead: bool) -> None:
        """Notes that a worker may have died of this request. is_dead: it said so itself."""
        life = (attempt.worker, attempt.worker_epoch)
        if attempt.worker_epoch or is_dead:  # otherwise it was gone before
            self.suspects[life] = self.suspects.get(life, False) or is_dead

    async def check_poison(self) -> None:
        """Raises Internal when this request is what workers die of, as far as one can tell."""
        if len(self.suspects) < POISON_DEATHS:
            return
        try:
            async with asyncio.timeout(self.config.death_news_s):
                while len(self._dead()) < POISON_DEATHS:
                    await self.workers.wait_changed()
        except TimeoutError:  # connections broke, processes did not
            self.suspects = dict.fromkeys(self._dead(), True)
            return
        metrics.MOVES_GIVEN_UP.labels(self.errand.model.name, "poison").inc()
        dead = self._dead()
        names = ", ".join(worker for worker, _ in dead)
        _log.error("request stopped: workers die of it", workers=names)
        raise Internal(
            f"{len(dead)} workers died one after the other while they had this request ({names}), so it is not tried "
            "on another one; sending it again unchanged may end further workers"
        )

    def give_up(self, reason: str, what: str, error: ShoalError | None) -> Unavailable:
        """What the client gets when no worker goes on: StreamLost if that would soon be so again, as with "max_moves".

        error: what ended the last attempt.
        """
        metrics.MOVES_GIVEN_UP.labels(self.errand.model.name, reason).inc()
        last = "" if error is None else f" (at last: {error.message})"
        kind = StreamLost if reason == "max_moves" else Unavailable
        return kind(f"the stream could not go on at another worker: {what}{last}")

    def _dead(self) -> list[tuple[str, int]]:
        epoch_of = self.workers.epoch_of
        return [life for life, is_dead in self.suspects.items() if is_dead or epoch_of(life[0]) != life[1]]
