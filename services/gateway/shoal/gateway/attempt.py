"""One try at some completions of a request on one worker, and the watch over tries that stand still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol

from shoal.blocks import KeyChain
from shoal.gateway.explain.records import AttemptRecord
from shoal.gateway.routing.load import Ticket
from shoal.gateway.routing.policy import Ranking
from shoal.gateway.routing.router import Pick
from shoal.rpc.errors import Cancelled, ShoalError, Unavailable

_LOOKS_PER_TIMEOUT: Final = 8
_LOOKS_GONE: Final = 2
"""A worker that is gone twice in a row is waited for no longer: a stopped machine closes no connection, but does not
answer the gateway's own pings either. Once may be that connection's trouble alone."""


class Stalled(Unavailable):
    """The worker sent nothing for too long."""


class Outbid(Unavailable):
    """Another worker is foreseen to be so much quicker that the rest is taken there."""


class Holder(Protocol):
    """Who reads an attempt, and knows what is left to do; see `leg.Leg`."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    def can_move(self) -> bool:
        """Whether another worker could go on."""
        ...

    def worker_is_gone(self) -> bool:
        """Whether the worker that this was sent to can no longer be reached past Envoy."""
        ...

    @property
    def num_chosen(self) -> int:
        """Moves by choice so far."""
        ...

    @property
    def remaining_tokens(self) -> int:
        """The most that may still come; 0 if the rest cannot be moved by choice."""
        ...

    def rank_others(self) -> Ranking | None:
        """The workers that this has not been at, by price; None if there are none."""
        ...


class Call(Protocol):
    """A call to a worker, such as `upstream.UpstreamCall`."""

    async def read(self) -> bytes | None:
        """The next message, None after the last. Raises the ShoalError that ended the call."""
        ...

    async def served_by(self) -> str:
        """ip:port of the worker, "" when not known."""
        ...

    def failed_at(self) -> str:
        """ip:port of the worker that an error came from, "" when not known."""
        ...

    def cancel(self) -> None:
        """Gives it up."""
        ...


class Attempt:
    """Made by `Dispatcher`; read by one task; closed by its leg."""

    __slots__ = (
        "_call", "_watch", "chain", "holder", "is_outbid", "is_reading", "num_looks", "num_looks_gone", "num_messages",
        "num_tokens", "on_outcome", "pick", "record", "stalled", "ticket", "worker", "worker_epoch",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        ticket: Ticket,
        pick: Pick,
        worker_epoch: int,
        watch: StallWatch,
        chain: KeyChain | None = None,
    ) -> None:
        self.pick = pick
        self.worker = pick.endpoints[0] if pick.endpoints else ""
        """Who answers; until the first message, who is expected to."""
        self.worker_epoch = worker_epoch
        """Which life of that worker; 0 when not known."""
        self.num_messages = 0
        self.num_tokens = 0
        self.is_reading = False
        self.num_looks = 0
        """How often the watch has seen the current read."""
        self.stalled = False
        self.num_looks_gone = 0
        """How often in a row the watch has found the worker gone."""
        self.is_outbid = False
        self.holder: Holder | None = None
        """Set by the leg."""
        self.chain = chain
        """What was picked by, until the first message."""
        self.record = AttemptRecord(pick)
        self.on_outcome: Callable[[Attempt], object] = bool
        """Called once, when the first message is here or can no longer come; set by the dispatcher."""
        self._call = call
        self.ticket = ticket
        self._watch = watch
        watch.add(self)

    def read(self) -> Awaitable[bytes | None]:
        """The next message, None after the last. Await it at once, and call `took` when it came, `failed` otherwise."""
        self.num_looks = 0
        self.is_reading = True
        return self._call.read()

    def took(self, num_tokens: int) -> None:
        """A message came."""
        self.is_reading = False
        self.num_messages += 1
        self.num_tokens += num_tokens

    def failed(self, error: ShoalError, epoch_of: Callable[[str], int]) -> ShoalError:
        """Closes it; what `error` means. Learns from the call who it was at, if Envoy chose another worker."""
        self.close()
        if self.stalled and isinstance(error, Cancelled):
            error = Stalled("the worker sent nothing for too long")
        if self.is_outbid and isinstance(error, Cancelled):
            error = Outbid("another worker is foreseen to be quicker")
        served_by = self._call.failed_at()
        if served_by and served_by != self.worker:
            self.worker, self.worker_epoch = served_by, epoch_of(served_by)
        if not self.num_messages:
            self._settle()
        return error

    async def answered(self, epoch_of: Callable[[str], int], cached_tokens: int | None) -> None:
        """Learns who answers. Call after the first message. cached_tokens: as it says, if it does."""
        self.record.first_message_s = time.perf_counter()
        self.record.cached_tokens = cached_tokens
        served_by = await self._call.served_by()
        self.ticket.answered(served_by or None)
        if served_by and served_by != self.worker:
            self.worker, self.worker_epoch = served_by, epoch_of(served_by)
        self._settle()

    def _settle(self) -> None:
        self.record.settle(self.worker)
        self.chain = None
        on_outcome, self.on_outcome = self.on_outcome, bool
        on_outcome(self)

    def stall(self) -> None:
        """Gives the call up because the worker stands still."""
        self.stalled = True
        self._call.cancel()

    @property
    def num_chosen(self) -> int:
        """See `Holder`."""
        return self.holder.num_chosen if self.holder else 0

    @property
    def remaining_tokens(self) -> int:
        """See `Holder`."""
        return self.holder.remaining_tokens if self.holder else 0

    def rank_others(self) -> Ranking | None:
        """See `Holder`."""
        return self.holder.rank_others() if self.holder else None

    def outbid(self) -> None:
        """Gives the call up because another worker goes on with the rest."""
        self.is_outbid = True
        self._call.cancel()

    def cancel(self) -> None:
        """Gives the call up because nobody wants its rest; a pending or later `read` raises Cancelled."""
        self._call.cancel()

    def close(self) -> None:
        """Ends the call and settles the load. Harmless when repeated."""
        self._watch.discard(self)
        self._call.cancel()
        self.ticket.close(self.num_tokens, was_slow=self.is_outbid)


class StallWatch:
    """Looks at every attempt a few times in a limit. Belongs to one event loop.

    A timer around every read would cost the relay a tenth of its time. It counts looks, not seconds: when this process
    itself was stopped, or its loop was busy, the workers are not to blame.
    """

    def __init__(self, *, stall_timeout_s: float, first_token_timeout_s: float) -> None:
        """stall_timeout_s: between messages; first_token_timeout_s: before the first one. 0: no limit."""
        limits = [limit for limit in (stall_timeout_s, first_token_timeout_s) if limit]
        self._interval_s = min(limits) / _LOOKS_PER_TIMEOUT if limits else 0.0
        self._max_looks = self._looks(stall_timeout_s)
        self._max_first_looks = self._looks(first_token_timeout_s)
        self._attempts: set[Attempt] = set()

    @property
    def attempts(self) -> Collection[Attempt]:
        """All that are under way."""
        return self._attempts

    def add(self, attempt: Attempt) -> None:
        """From now on it is watched."""
        self._attempts.add(attempt)

    def discard(self, attempt: Attempt) -> None:
        """It is over."""
        self._attempts.discard(attempt)

    async def run(self) -> None:
        """Watches until cancelled; returns at once when there is no limit."""
        while self._interval_s:
            await asyncio.sleep(self._interval_s)
            self.look()

    def look(self) -> None:
        """Gives up the attempts that stood still for too long, where another worker could go on."""
        for attempt in list(self._attempts):
            holder = attempt.holder
            if holder is None or not attempt.is_reading or attempt.stalled or attempt.is_outbid:
                continue
            attempt.num_looks += 1
            attempt.num_looks_gone = attempt.num_looks_gone + 1 if holder.worker_is_gone() else 0
            most = self._max_looks if attempt.num_messages else self._max_first_looks
            is_late = bool(most) and attempt.num_looks > most
            if (is_late or attempt.num_looks_gone >= _LOOKS_GONE) and holder.can_move():
                attempt.stall()

    def _looks(self, limit_s: float) -> int:
        return max(1, round(limit_s / self._interval_s)) if limit_s else 0
