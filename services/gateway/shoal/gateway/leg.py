"""Some completions of a request on their way through workers: one attempt after another, without a seam."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog
from opentelemetry import trace

from shoal.gateway import metrics
from shoal.gateway.attempt import Attempt
from shoal.gateway.failover import PROGRESS_TOKENS, Loss, LossReason, backoff_s, loss_of
from shoal.gateway.journal import Message
from shoal.gateway.routing.policy import Ranking
from shoal.gateway.stream import Stream
from shoal.gateway.upstream import Lost
from shoal.rpc.errors import DeadlineExceeded, ShoalError

_log = structlog.get_logger("shoal.gateway.failover")


class Leg:
    """Read by one task. Ends after the last message of its completions; or early, when several were lost in the middle:
    then `remains` are the legs that go on, one each, since workers resume one completion at a time."""

    __slots__ = (
        "_attempt", "_avoided", "_error", "_holds_gate", "_lost_s", "_num_moves", "_num_unreached", "_reason",
        "_stream", "_was_split", "choices", "num_chosen", "pending", "raw",
    )  # fmt: skip

    def __init__(self, stream: Stream, choices: Sequence[int], attempt: Attempt | None) -> None:
        """Without an attempt it begins with a move; `choices` is then one."""
        self.choices = choices
        self.raw = b""
        """The bytes of the message that `read` returned last."""
        self.pending: asyncio.Task[Message | None] | None = None
        """A `read` under way; `Generation` uses it when there are several legs."""
        self.num_chosen = 0
        """Moves by choice so far."""
        self._stream = stream
        self._attempt = attempt
        self._avoided: dict[str, int] = {}
        self._error: ShoalError | None = None
        self._reason: LossReason = "client"
        self._holds_gate = False
        self._lost_s = time.perf_counter() if attempt is None else 0.0
        """When the completions were lost (`time.perf_counter()`), until the next message."""
        self._num_moves = 0
        """Without progress in between."""
        self._num_unreached = 0
        """Attempts that came to no worker, since the last message."""
        self._was_split = False
        if attempt is not None:
            self._adopt(attempt)

    @property
    def attempt(self) -> Attempt | None:
        """The one under way."""
        return self._attempt

    async def read(self) -> Message | None:
        """The next message, None after the last. Raises what ended the stream for good."""
        while not self._was_split:
            attempt = self._attempt
            if attempt is None:
                attempt = await self._move()
            try:
                raw = await attempt.read()
                if raw is not None:
                    message = self._take(attempt, raw)
                    if attempt.num_messages == 1:
                        await self._begin(attempt, message)
                    return message
                if not self._unfinished():
                    self._end(attempt)
                    return None
                raise Lost("the worker ended the answer in the middle; send the request again")
            except ShoalError as error:
                if not self._unfinished():  # all is here: what came after it is no loss
                    self._end(attempt)
                    return None
                self._lose(attempt, error)
        return None

    def remains(self) -> list[Leg]:
        """The legs that go on after this one ended; none after a proper end."""
        legs = []
        if self._was_split:
            for choice in self._unfinished():
                leg = Leg(self._stream, [choice], None)
                leg._avoided, leg._error, leg._reason = dict(self._avoided), self._error, self._reason
                leg._lost_s, leg._num_moves, leg._num_unreached = self._lost_s, self._num_moves, self._num_unreached
                leg.num_chosen = self.num_chosen
                legs.append(leg)
        return legs

    def cancel(self) -> None:
        """Ends the call; a pending or later `read` raises Cancelled."""
        if self._attempt is not None:
            self._attempt.cancel()

    def close(self) -> None:
        """Ends everything under way. Harmless when repeated."""
        if self.pending is not None:
            self.pending.cancel()
        if self._attempt is not None:
            self._attempt.close()
        self._leave_gate()

    def _unfinished(self) -> list[int]:
        return [c for c in self.choices if not self._stream.journal.completions[c].over]

    def _adopt(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._stream.record.add(attempt.record)
        attempt.holder = self

    @property
    def model(self) -> str:
        """Its name."""
        return self._stream.errand.model.name

    @property
    def remaining_tokens(self) -> int:
        """The most that may still come; 0 if the rest cannot be moved by choice, such as several completions."""
        errand, journal = self._stream.errand, self._stream.journal
        if journal.begun and len(self.choices) > 1:
            return 0
        sampling = errand.message.sampling
        room = errand.model.max_model_len - self._stream.num_prompt_tokens
        most = sampling.max_tokens if sampling.HasField("max_tokens") else room
        return max(0, most - journal.completions[self.choices[0]].num_tokens)

    def rank_others(self) -> Ranking | None:
        """The workers that this has not been at, by price; None if there are none."""
        stream, attempt = self._stream, self._attempt
        if attempt is None or not (endpoints := self._others(attempt)):
            return None
        return stream.workers.rank(stream.errand, stream.journal, self.choices, endpoints, attempt.chain)

    def worker_is_gone(self) -> bool:
        """Whether the worker that the attempt was sent to can no longer be reached past Envoy."""
        attempt = self._attempt
        if attempt is None or not attempt.worker_epoch:
            return False
        return self._stream.workers.epoch_of(attempt.worker) != attempt.worker_epoch

    def can_move(self) -> bool:
        """Whether another worker could go on."""
        attempt = self._attempt
        return attempt is not None and bool(self._stream.config.max_moves) and bool(self._others(attempt))

    def _others(self, attempt: Attempt) -> list[str]:
        avoided = self._avoided | {attempt.worker: attempt.worker_epoch}
        return self._stream.workers.candidates(self._stream.errand, avoided)

    def _take(self, attempt: Attempt, raw: bytes) -> Message:
        stream = self._stream
        message = Message.FromString(raw)
        had_begun = stream.journal.begun
        stream.journal.note(message, self.choices)
        attempt.took(len(message.token_ids))
        if not had_begun and message.HasField("usage"):
            stream.num_prompt_tokens = message.usage.prompt_tokens
            stream.num_cached_tokens = message.usage.cached_tokens
        self.raw = raw
        return message

    async def _begin(self, attempt: Attempt, message: Message) -> None:
        stream = self._stream
        cached_tokens = message.usage.cached_tokens if message.HasField("usage") else None
        await attempt.answered(stream.workers.epoch_of, cached_tokens)
        name = stream.errand.model.name
        if attempt.pick.endpoints and attempt.worker != attempt.pick.endpoints[0]:
            metrics.REPICKED.labels(name).inc()
        self._leave_gate()
        self._num_unreached = 0
        if self._lost_s:
            took_s = time.perf_counter() - self._lost_s
            self._lost_s = 0.0
            metrics.MOVE_S.labels(name).observe(took_s)
            num_tokens = stream.journal.num_tokens
            _log.info("stream moved", worker=attempt.worker, took_s=round(took_s, 4), delivered_tokens=num_tokens)
            trace.get_current_span().add_event(
                "shoal.stream.moved", {"shoal.worker": attempt.worker, "shoal.took_s": took_s}
            )

    def _lose(self, attempt: Attempt, error: ShoalError) -> None:
        """Notes what the loss means for the stream. Raises `error`, or a better one, when it ends here."""
        stream = self._stream
        error = attempt.failed(error, stream.workers.epoch_of)
        self._end(attempt)
        # A full worker is no answer to a request that another one had taken already.
        loss = loss_of(error, begun=stream.journal.begun or self.num_chosen > 0)
        if loss is None or not stream.config.max_moves:
            raise error
        attempt.record.lost, attempt.record.error = loss.reason, error.message
        self._error, self._reason = error, loss.reason
        if not self._lost_s:
            self._lost_s = time.perf_counter()
        if attempt.num_tokens >= PROGRESS_TOKENS:
            self._num_moves = 0
        if attempt.num_tokens:
            stream.suspects.clear()
        if loss.reason == "unreached":
            self._num_unreached += 1
        is_chosen = loss.reason == "rebalance"
        self.num_chosen += is_chosen
        may_wait = stream.journal.begun or is_chosen  # with nothing delivered the client decides how long to wait
        if loss.counts or not may_wait:
            self._num_moves += 1
        if loss.counts or is_chosen:
            self._avoided[attempt.worker] = attempt.worker_epoch
        if loss.accuses(attempt.num_tokens):
            stream.suspect(attempt, is_dead=loss.reason == "failed")
        self._report(attempt, loss, error)
        if self._num_unreached and time.perf_counter() - self._lost_s > stream.config.wait_s:
            raise stream.give_up("no_worker", f"none could be reached within {stream.config.wait_s:g} s", error)
        if self._num_moves > stream.config.max_moves:
            raise stream.give_up("max_moves", f"it was lost {self._num_moves} times in a row", error)
        if stream.journal.begun:
            stream.has_moved = True
            self._was_split = len(self.choices) > 1

    def _report(self, attempt: Attempt, loss: Loss, error: ShoalError) -> None:
        stream = self._stream
        num_tokens = stream.journal.num_tokens
        tell = _log.info if loss.reason == "rebalance" else _log.warning
        tell(
            "stream lost", reason=loss.reason, worker=attempt.worker, delivered_tokens=num_tokens, message=error.message
        )
        trace.get_current_span().add_event(
            "shoal.stream.lost",
            {"shoal.reason": loss.reason, "shoal.worker": attempt.worker, "shoal.delivered_tokens": num_tokens},
        )

    async def _move(self) -> Attempt:
        """Finds a worker and sends the rest there. Raises what the client should see when there is none."""
        stream = self._stream
        try:
            async with asyncio.timeout(stream.errand.remaining_s()):
                await stream.check_poison()
                num_waits = self._num_moves + self._num_unreached
                await asyncio.sleep(backoff_s(num_waits, self._error, stream.config.first_backoff_s))
                await stream.gate.enter()
                self._holds_gate = True
                endpoints = await self._find_workers()
        except TimeoutError:
            self._leave_gate()
            raise DeadlineExceeded("the deadline passed while the stream moved to another worker") from None
        except BaseException:
            self._leave_gate()
            raise
        attempt = stream.workers.resume(stream.errand, stream.journal, self.choices, endpoints)
        metrics.MOVES.labels(stream.errand.model.name, self._reason).inc()
        self._adopt(attempt)
        return attempt

    async def _find_workers(self) -> list[str]:
        """Workers to choose from: others, else any, else, for a stream that has delivered tokens, whoever comes."""
        stream = self._stream
        until_s = self._lost_s + stream.config.wait_s
        while True:
            if others := stream.workers.candidates(stream.errand, self._avoided):
                return others
            if not stream.journal.begun and self._error is not None and self._reason != "rebalance":
                raise self._error  # nothing is lost: better that the client decides than that it waits
            if any_ready := stream.workers.candidates(stream.errand, {}):
                return any_ready
            try:
                async with asyncio.timeout(until_s - time.perf_counter()):
                    await stream.workers.wait_changed()
            except TimeoutError:
                waited = f"no worker was ready within {stream.config.wait_s:g} s"
                raise stream.give_up("no_worker", waited, self._error) from None

    def _end(self, attempt: Attempt) -> None:
        self._attempt = None
        attempt.record.num_tokens = attempt.num_tokens
        attempt.close()
        self._leave_gate()

    def _leave_gate(self) -> None:
        if self._holds_gate:
            self._holds_gate = False
            self._stream.gate.leave()
