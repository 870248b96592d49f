"""How long work takes at each worker, learned from how long it took."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Final, NamedTuple

Coefficients = tuple[float, float, float]
_MIN_SHARE: Final = 0.02
"""The least a coefficient falls to, as a part of its prior: none becomes negative, none is lost for good."""
_FIRST_COVARIANCE: Final = 1000.0
"""Of the coefficients, in units of their prior: a device may well be 30 times as fast, and the first answers decide."""
_FIRST: Final = 8
"""Observations of a worker that count in full, however far off."""
_MOST: Final = 20
"""Observations that a worker's factor is the mean of: its last ones."""
_OUTLIER: Final = 4.0
"""Later, none counts as further off than this ratio: a stall says little of the next request."""
_EQUAL: Final = 0.15
"""Logarithm of a ratio. Equal workers' factors differ by some 6% by chance, and a policy that took this for true would
send every long prompt to the seemingly fastest: a deviation of this much counts half, smaller ones vanish."""
_STANDARD_ERRORS: Final = 2.0
"""So does one of so many standard errors of the worker's factor. After few answers a worker differs by which prompts it
got rather than by its speed: without this, idle holders of a prefix were passed over on new meshes of CPU workers."""
_FIRST_VARIANCE: Final = 1.0
_FIRST_VARIANCE_COUNT: Final = 4
"""Of single observations around their worker's factor: an assumption, and how many observations it is worth."""
_MOST_VARIANCE_COUNT: Final = 200
_LEAST_S: Final = 1e-6
_NOISE: Final = 0.1
"""Variance of an observation, relative to its square; what does not fit the form of the sum is in it."""
_FORGETTING: Final = 0.995
"""A worker's behaviour some thousand observations ago does not matter."""
_MAX_VARIANCE: Final = 4.0


class Work(NamedTuple):
    """What a duration is a sum over: three amounts, in the order of the coefficients."""

    steps: float
    tokens: float
    pairs: float

    def plus(self, other: Work) -> Work:
        """Both."""
        return Work(self.steps + other.steps, self.tokens + other.tokens, self.pairs + other.pairs)


class Rates:
    """seconds = factor of the worker * (a * steps + b * tokens + c * pairs), none of them negative.

    The three coefficients say how the parts compare and are learned from all workers together, by recursive least
    squares of relative errors with forgetting; the factor says how fast a worker is and is learned from it alone, as
    the mean of what its last observations, kept for that, are in terms of the coefficients of the day.
    A prior that is wrong by any factor is right after one answer, and before that it is wrong for all workers alike,
    which changes no comparison. Unknown workers have the mean factor of the known.
    """

    def __init__(self, prior: Coefficients) -> None:
        self._prior = prior
        self._shares = [1.0, 1.0, 1.0]
        self._covariance = [[_FIRST_COVARIANCE if i == j else 0.0 for j in range(3)] for i in range(3)]
        self._seen: dict[str, deque[tuple[Work, float]]] = {}
        self._logs: dict[str, float] = {}
        self._mean_log = 0.0
        self._variance = _FIRST_VARIANCE
        self._num_observed = 0
        self._factors: dict[str, float] = {}
        self._mean_factor = 1.0
        self.coefficients: Coefficients = prior
        """As learned so far, of a worker with factor 1."""

    def factor(self, worker: str) -> float:
        """How many times longer than `coefficients` say this worker takes."""
        return self._factors.get(worker, self._mean_factor)

    def num_seen(self, worker: str) -> int:
        """Observations that its factor rests on."""
        return len(self._seen.get(worker, ()))

    def seconds(self, worker: str, work: Work) -> float:
        """The prediction."""
        return self.factor(worker) * self._unscaled_s(work)

    def observe(self, worker: str, work: Work, actual_s: float) -> None:
        """`worker` took this long. Ignored unless it did something, and took some microseconds at least."""
        unscaled_s = self._unscaled_s(work)
        if not (actual_s > _LEAST_S and unscaled_s > 0):
            return
        own = self._logs.get(worker, self._mean_log)
        seen = self._seen.setdefault(worker, deque(maxlen=_MOST))
        error = math.log(actual_s / unscaled_s) - own
        if len(seen) >= _FIRST:
            error = min(max(error, -math.log(_OUTLIER)), math.log(_OUTLIER))
        seen.append((work, unscaled_s * math.exp(own + error)))
        deviation = math.log(self.factor(worker)) - self._mean_log
        self._learn_shares(work, math.exp(own + error - deviation))
        self._num_observed += 1
        self._learn_factor(worker)
        self._learn_factor(self._whose_turn())
        self._refresh()

    def forget(self, worker: str) -> None:
        """The worker is gone, or has restarted."""
        if self._logs.pop(worker, None) is not None:
            del self._seen[worker]
            self._refresh()

    def _unscaled_s(self, work: Work) -> float:
        a, b, c = self.coefficients
        return a * work.steps + b * work.tokens + c * work.pairs

    def _whose_turn(self) -> str:
        """Coefficients change with everybody's observations: one other worker at a time is brought up to date."""
        return next(itertools.islice(self._seen, self._num_observed % len(self._seen), None))

    def _learn_factor(self, worker: str) -> None:
        logs = [math.log(seconds / self._unscaled_s(work)) for work, seconds in self._seen[worker]]
        others = len(self._logs) - (worker in self._logs)
        # The mean of the others counts as one observation, if there are others.
        own = (sum(logs) + (self._mean_log if others else 0.0)) / (len(logs) + (1 if others else 0))
        self._logs[worker] = own
        if len(logs) > 1:
            count = min(self._num_observed + _FIRST_VARIANCE_COUNT, _MOST_VARIANCE_COUNT)
            variance = sum((each - own) ** 2 for each in logs) / (len(logs) - 1)
            self._variance += (variance - self._variance) / count

    def _refresh(self) -> None:
        if self._logs:
            self._mean_log = sum(self._logs.values()) / len(self._logs)
        self._mean_factor = math.exp(self._mean_log)
        self._factors = {worker: math.exp(self._shrunk(worker)) for worker in self._logs}

    def _shrunk(self, worker: str) -> float:
        deviation = self._logs[worker] - self._mean_log
        square = deviation * deviation
        doubt = _EQUAL**2 + _STANDARD_ERRORS**2 * self._variance / len(self._seen[worker])
        return self._mean_log + deviation * square / (square + doubt)

    def _learn_shares(self, work: Work, ratio: float) -> None:
        """One step of recursive least squares in units of the prior, where the prediction is 1 and `ratio` came."""
        parts = [coefficient * amount for coefficient, amount in zip(self._prior, work, strict=True)]
        predicted = sum(share * part for share, part in zip(self._shares, parts, strict=True))
        row = [part / predicted for part in parts]
        spread = [sum(p * r for p, r in zip(line, row, strict=True)) for line in self._covariance]
        scale = _NOISE + sum(r * s for r, s in zip(row, spread, strict=True))
        error = ratio - 1
        for i in range(3):
            self._shares[i] = max(_MIN_SHARE, self._shares[i] + spread[i] / scale * error)
            for j in range(3):
                self._covariance[i][j] -= spread[i] * spread[j] / scale
        largest = max(self._covariance[i][i] for i in range(3))
        if largest < _MAX_VARIANCE:
            for line in self._covariance:
                line[:] = [entry / _FORGETTING for entry in line]
        a, b, c = (share * prior for share, prior in zip(self._shares, self._prior, strict=True))
        self.coefficients = (a, b, c)
