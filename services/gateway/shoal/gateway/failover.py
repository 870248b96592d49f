"""When a stream moves to another worker, and when it is better not to."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from shoal.gateway.attempt import Outbid, Stalled
from shoal.gateway.upstream import Lost, Unreached
from shoal.rpc.errors import Draining, ResourceExhausted, ShoalError, Unavailable, WorkerFailed

PROGRESS_TOKENS: Final = 16
"""An attempt that delivered this many tokens does not count towards `max_moves`. More than one message holds (8)."""
POISON_DEATHS: Final = 2
MOST_BACKOFF_S: Final = 2.0

LossReason = Literal["lost", "unreached", "failed", "drain", "stall", "refused", "full", "client", "rebalance"]
"""lost: the connection or the process went away. unreached: before the request was there. failed: the worker said that
its engine died. drain: it shuts down. stall: it stood still. refused: it cannot serve now, such as while loading. full:
its queue is. client: not a loss here; a client brought along what it has of an answer that some gateway began.
rebalance: nothing is wrong, but another worker is foreseen to be much quicker."""


@dataclass(frozen=True, slots=True)
class FailoverConfig:
    """Limits; for the first two see `config.Config`."""

    max_moves: int = 5
    wait_s: float = 60.0
    budget_ratio: float = 0.2
    """Streams on their way at once, as a part of those under way; but always `min_budget`."""
    min_budget: int = 10
    first_backoff_s: float = 0.05
    """Before the second move without progress; doubles up to 2 s."""
    death_news_s: float = 0.25
    """How long the fleet may take to notice that a process is gone: its own connection to it breaks as well."""


@dataclass(frozen=True, slots=True)
class Loss:
    """An attempt ended before its completions did."""

    reason: LossReason

    @property
    def counts(self) -> bool:
        """Whether it is one of the `max_moves`: somebody tried. Otherwise `wait_s` is the limit."""
        return self.reason not in ("full", "unreached", "rebalance")

    def accuses(self, num_tokens: int) -> bool:
        """Whether the request may be what the worker died of; num_tokens: how many it had delivered of it.

        A worker that says so is believed: an engine dies of what it computes. One that vanishes is often killed for
        reasons of its own, so that counts only if it had not come to a token.
        """
        return self.reason == "failed" or (self.reason == "lost" and not num_tokens)


def loss_of(error: ShoalError, *, begun: bool) -> Loss | None:
    """What an attempt's end means; None when no other worker could do better, or should (full, before any token: the
    mesh has tried others, and the client is told when to come back)."""
    match error:
        case Lost():
            return Loss("lost")
        case Unreached():
            return Loss("unreached")
        case WorkerFailed():
            return Loss("failed")
        case Draining():
            return Loss("drain")
        case Outbid():
            return Loss("rebalance")
        case Stalled():
            return Loss("stall")
        case Unavailable():
            return Loss("refused")
        case ResourceExhausted() if begun:
            return Loss("full")
    return None


def backoff_s(num_moves: int, error: ShoalError | None, first_s: float) -> float:
    """How long to wait before move number `num_moves` (from 1) without progress in between: nothing the first time."""
    least_s = min(error.retry_after_s or 0.0, MOST_BACKOFF_S) if isinstance(error, ResourceExhausted) else 0.0
    if num_moves <= 1:
        return least_s
    grown_s = min(first_s * 2.0 ** (num_moves - 2), MOST_BACKOFF_S)
    return max(least_s, grown_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing


class MoveGate:
    """How many streams of this gateway may be on their way to another worker at once; the others wait in order.

    A worker's death moves all of its streams. Let loose together they would arrive as one burst of prompts, at workers
    that may be about to die of the same cause. Belongs to one event loop.
    """

    def __init__(self, config: FailoverConfig) -> None:
        self._ratio = config.budget_ratio
        self._least = config.min_budget
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.num_moving = 0
        self.num_streams = 0
        """Under way in this gateway; kept by `Generation`."""

    @property
    def limit(self) -> int:
        """Moves at once."""
        return max(self._least, int(self._ratio * self.num_streams))

    async def enter(self) -> None:
        """Returns when it is this stream's turn. Pair with `leave`. The caller sets the deadline."""
        if self.num_moving < self.limit and not self._waiting:
            self.num_moving += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            elif turn in self._waiting:  # otherwise `leave` has passed over it
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """The stream goes on, or ended."""
        self.num_moving -= 1
        while self._waiting and self.num_moving < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.num_moving += 1
                turn.set_result(None)
