"""Which requests would better go on at another worker although their own is well. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from shoal.gateway.routing.load import LoadTracker, Ticket
from shoal.gateway.routing.pace import Pace
from shoal.gateway.routing.policy import Ranking
from shoal.gateway.routing.router import Pick

_AGAIN: Final = ("work", "eviction")
"""Terms of a price for computing what may be computed already."""
_MEASURED: Final = 8
"""Observations of a worker's rates after which its prompts can be late."""
_DECLINED_LOOKS: Final = 4
"""For so many looks a request is not priced again after it was better off where it is."""


@dataclass(frozen=True, slots=True)
class RebalanceConfig:
    """When moving pays. The defaults are measured: see ADR 0018."""

    interval_s: float = 1.0
    """Between two looks."""
    min_gain_s: float = 1.0
    gain_ratio: float = 0.5
    """What must be gained, as a part of what staying would cost: the prices are forecasts."""
    late_ratio: float = 3.0
    """A prompt that may have begun moves only once it is late by this many times what it was expected to take."""
    slow_looks: int = 3
    """In a row, at which a worker's running streams could be twice as fast elsewhere, before any of them moves."""
    silent_s: float = 3.0
    """A running stream that gets nothing for so long while others do: it was preempted, or its worker stands still."""
    worker_share: float = 0.1
    """Of a worker's running streams that may go at one look, but one at least; then their absence is measured."""
    cooldown_s: float = 4.0
    """After a move by choice until the next, four times as long after each."""
    max_priced: int = 16
    """Requests that are priced at one look: some 200 us each with 64 workers."""


class Movable(Protocol):
    """A request under way at a worker; see `attempt.Attempt`."""

    num_tokens: int
    """That this worker has given it."""
    is_reading: bool
    pick: Pick

    @property
    def num_chosen(self) -> int:
        """Moves by choice so far."""
        ...

    @property
    def ticket(self) -> Ticket:
        """Its share of its worker's load."""
        ...

    @property
    def remaining_tokens(self) -> int:
        """The most that it may still get; 0 if it cannot move."""
        ...

    def rank_others(self) -> Ranking | None:
        """Workers it has not been at, with prices for all that it has; None if there are none."""
        ...


M = TypeVar("M", bound=Movable)


class Stay(NamedTuple):
    """What a request has to expect where it is."""

    number: int
    worker: str
    wait_s: float
    """What it would get rid of elsewhere."""
    spared_s: float = 0.0
    """What a move would save its worker, in the terms of a price."""
    token_s: float = 0.0
    """What it waits for each token, if it is that which takes `wait_s`."""


class Option(NamedTuple):
    """What it has to expect elsewhere."""

    worker: str
    price_s: float
    busy_s: float
    """How much longer the next request would wait there."""


def choose(
    stays: Collection[Stay], options_of: Callable[[Stay], Sequence[Option]], limit: int, config: RebalanceConfig
) -> tuple[list[tuple[Stay, str]], list[Stay]]:
    """At most `limit` moves (who, and to which worker), those who wait longest first; and who was priced and stays.

    The longest wait is the last of a queue: when it leaves, nobody else's wait changes.
    """
    moves: list[tuple[Stay, str]] = []
    declined: list[Stay] = []
    added_s: dict[str, float] = {}
    for stay in sorted(stays, key=lambda stay: (-stay.wait_s, stay.number)):
        if len(moves) >= limit or len(moves) + len(declined) >= config.max_priced:
            break
        options = [o for o in options_of(stay) if o.worker != stay.worker]
        best = min(options, key=lambda o: (o.price_s + added_s.get(o.worker, 0.0), o.worker), default=None)
        if best is not None:
            gain_s = stay.wait_s + stay.spared_s - best.price_s - added_s.get(best.worker, 0.0)
            if gain_s >= max(config.min_gain_s, config.gain_ratio * stay.wait_s):
                added_s[best.worker] = added_s.get(best.worker, 0.0) + best.busy_s
                moves.append((stay, best.worker))
                continue
        declined.append(stay)
    return moves, declined


class Rebalancer:
    """Of the workers of one model. `look` once in an interval; it moves nothing itself."""

    def __init__(self, loads: LoadTracker, config: RebalanceConfig) -> None:
        self._loads = loads
        self._config = config
        self.interval_s = config.interval_s
        """Between two looks."""
        self._pace = Pace(loads, 3 * config.interval_s)
        self._num_slow: dict[str, int] = {}
        """Looks in a row that found a worker slow."""
        self._declined: dict[int, int] = {}
        """By request, how many looks it is still left alone."""

    def look(self, requests: Collection[M], workers: Sequence[str], limit: int) -> list[M]:
        """Who should go, of this gateway's requests. workers: those that can take any; limit: moves at most."""
        # Several completions in one attempt share its count of tokens; they do not move either.
        self._pace.look([request for request in requests if request.remaining_tokens], workers)
        self._find_slow(workers)
        self._declined = {number: left - 1 for number, left in self._declined.items() if left > 1}
        if len(workers) < 2 or limit <= 0:
            return []
        stays = [*self._waiting(requests), *self._running(requests)]
        if not stays:
            return []
        by_number = {request.ticket.number: request for request in requests}
        moves, declined = choose(stays, lambda stay: self._options(stay, by_number[stay.number]), limit, self._config)
        self._declined |= dict.fromkeys((stay.number for stay in declined), _DECLINED_LOOKS)
        return [by_number[stay.number] for stay, _ in moves]

    def _may_go(self, request: Movable) -> bool:
        ticket, config = request.ticket, self._config
        if not ticket.is_open or ticket.number in self._declined:
            return False
        if not request.num_chosen:
            return True
        return self._loads.clock() - ticket.sent_s >= config.cooldown_s * 4.0 ** (request.num_chosen - 1)

    def _waiting(self, requests: Collection[Movable]) -> list[Stay]:
        """Those without a token that the forecast keeps waiting."""
        forecast, config = self._loads.forecast, self._config
        standings = {}
        stays = []
        for request in requests:
            ticket = request.ticket
            worker = ticket.worker
            if not ticket.entry or worker is None or not self._may_go(request):
                continue
            if worker not in standings:
                standings[worker] = forecast.standings(worker)
            standing = standings[worker].get(ticket.entry)
            if standing is None or standing.answer_s < config.min_gain_s:
                continue
            is_late = standing.late_s > config.late_ratio * standing.head_s
            if not standing.has_begun:
                stays.append(Stay(ticket.number, worker, standing.answer_s, _spared_s(request, worker)))
            elif is_late and forecast.prefill.num_seen(worker) >= _MEASURED:
                stays.append(Stay(ticket.number, worker, standing.answer_s))
        return stays

    def _running(self, requests: Collection[Movable]) -> list[Stay]:
        """Those that get nothing any more, and some of each slow worker's, the shortest first: they cost least."""
        config = self._config
        stays = []
        of_slow: dict[str, list[Movable]] = {}
        for request in requests:
            ticket = request.ticket
            worker = ticket.worker
            if not ticket.is_answered or worker is None or not request.is_reading or not self._may_go(request):
                continue
            silent_s = self._pace.silent_s(request)
            if silent_s >= config.silent_s and self._pace.alive:
                stays.append(Stay(ticket.number, worker, silent_s))
            elif self._num_slow.get(worker, 0) >= config.slow_looks:
                of_slow.setdefault(worker, []).append(request)
        for worker, slow in of_slow.items():
            num = max(1, int(config.worker_share * len(slow)))
            slow.sort(key=lambda r: (r.ticket.num_prompt_tokens + r.num_tokens, r.ticket.number))
            stays += [self._slow(request, worker) for request in slow[:num]]
        return stays

    def _slow(self, request: Movable, worker: str) -> Stay:
        """It will have to do with a slow worker to its end, or for as long as that has been slow."""
        token_s = self._pace.token_s(worker) or 0.0
        num_tokens = min(request.remaining_tokens, self._loads.forecast.output_tokens)
        slow_s = min(num_tokens * token_s, self._num_slow[worker] * self._config.interval_s)
        return Stay(request.ticket.number, worker, slow_s, token_s=token_s)

    def _find_slow(self, workers: Sequence[str]) -> None:
        """A worker is slow when its streams would be twice as fast at the best other one."""
        foreseen_s = {worker: self._pace.foreseen_s(worker) for worker in workers}
        num_slow = {}
        for worker in workers:
            here_s = self._pace.token_s(worker)
            others_s = [s for other, s in foreseen_s.items() if other != worker and s is not None]
            if here_s is not None and others_s and here_s * (1 - self._config.gain_ratio) > min(others_s):
                num_slow[worker] = self._num_slow.get(worker, 0) + 1
        self._num_slow = num_slow

    def _options(self, stay: Stay, request: Movable) -> list[Option]:
        ranking = request.rank_others() if request.remaining_tokens else None
        if ranking is None or not ranking.terms:
            return []
        prefill = ranking.term_names.index("prefill")
        options = []
        for candidate, row in zip(ranking.candidates, ranking.terms, strict=True):
            price_s = sum(row)
            if request.ticket.is_answered:  # its prompt is computed once already: all others there wait for it
                price_s += row[prefill] * candidate.load.num_requests
            if stay.token_s:
                there_s = self._pace.foreseen_s(candidate.endpoint) or stay.token_s
                price_s += stay.wait_s * min(1.0, there_s / stay.token_s)
            options.append(Option(candidate.endpoint, price_s, row[prefill]))
        return options


def _spared_s(request: Movable, worker: str) -> float:
    """What its own worker need not compute, if nothing was computed yet: as it was priced."""
    ranking = request.pick.ranking
    if ranking is None or not ranking.terms or ranking.candidates[0].endpoint != worker:
        return 0.0
    return sum(seconds for name, seconds in zip(ranking.term_names, ranking.terms[0], strict=True) if name in _AGAIN)
