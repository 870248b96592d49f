"""How long work takes at each worker, learned from how long it took."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

Coefficients = tuple[float, float, float]
_MIN_SHARE: Final = 0.02
"""The least a coefficient falls to, as a part of its prior: none becomes negative, none is lost for good."""
_FIRST: Final = 8
"""Observations of a worker that count in full, however far off; until then its factor alone learns from them."""
_MOST: Final = 20
"""Observations that a worker's factor is the mean of; later ones count as much as the last of these."""
_OUTLIER: Final = 4.0
"""Later, none counts as further off than this ratio: a stall says little of the next request."""
_EQUAL: Final = 0.15
"""Logarithm of a ratio. Equal workers' factors differ by some 6% by chance, and a policy that took this for true would
send every long prompt to the seemingly fastest: a deviation of this much counts half, smaller ones vanish."""
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
    squares of relative errors with forgetting; the factor says how fast a worker is and is learned from it alone.
    A prior that is wrong by any factor is right after one answer of each worker, and before that it is wrong
    for all workers alike, which changes no comparison. Unknown workers have the mean factor of the known.
    """

    def __init__(self, prior: Coefficients) -> None:
        self._prior = prior
        self._shares = [1.0, 1.0, 1.0]
        self._covariance = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        self._logs: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._mean_log = 0.0
        self._factors: dict[str, float] = {}
        self._mean_factor = 1.0
        self.coefficients: Coefficients = prior
        """As learned so far, of a worker with factor 1."""

    def factor(self, worker: str) -> float:
        """How many times longer than `coefficients` say this worker takes."""
        return self._factors.get(worker, self._mean_factor)

    def seconds(self, worker: str, work: Work) -> float:
        """The prediction."""
        return self.factor(worker) * self._unscaled_s(work)

    def observe(self, worker: str, work: Work, actual_s: float) -> None:
        """`worker` took this long. Ignored unless it did something, and took some microseconds at least."""
        unscaled_s = self._unscaled_s(work)
        if not (actual_s > _LEAST_S and unscaled_s > 0):
            return
        own = self._logs.get(worker, self._mean_log)
        count = self._counts.get(worker, 0)
        error = math.log(actual_s / unscaled_s) - own
        if count >= _FIRST:
            error = min(max(error, -math.log(_OUTLIER)), math.log(_OUTLIER))
            self._learn_shares(work, math.exp(error))
        # The mean of the others counts as one observation, if there are others.
        self._logs[worker] = own + error / (min(count, _MOST) + (2 if len(self._logs) > (worker in self._logs) else 1))
        self._counts[worker] = count + 1
        self._refresh()

    def forget(self, worker: str) -> None:
        """The worker is gone, or has restarted."""
        if self._logs.pop(worker, None) is not None:
            del self._counts[worker]
            self._refresh()

    def _unscaled_s(self, work: Work) -> float:
        a, b, c = self.coefficients
        return a * work.steps + b * work.tokens + c * work.pairs

    def _refresh(self) -> None:
        if self._logs:
            self._mean_log = sum(self._logs.values()) / len(self._logs)
        self._mean_factor = math.exp(self._mean_log)
        self._factors = {worker: math.exp(self._shrunk(own)) for worker, own in self._logs.items()}

    def _shrunk(self, own: float) -> float:
        deviation = own - self._mean_log
        square = deviation * deviation
        return self._mean_log + deviation * square / (square + _EQUAL * _EQUAL)

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
