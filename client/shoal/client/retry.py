"""When and how soon to repeat a call that failed before its first chunk.

Backoff is exponential with jitter. The budget is the token bucket of gRPC's retry throttling (gRFC A6): each failure
that could be retried costs one token, each success gives `token_ratio` back, and nothing is retried while the bucket
is half empty or less; so a server in trouble sees few repeated calls. A server's `RetryInfo` is a lower bound of the
wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from shoal.rpc.errors import ResourceExhausted, ShoalError, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client repeats calls that ended UNAVAILABLE or RESOURCE_EXHAUSTED. `max_attempts=1` turns retries off."""

    max_attempts: int = 4
    """The first try included."""
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    backoff_multiplier: float = 2.0
    jitter: float = 0.2
    """A wait of t becomes one in [t * (1 - jitter), t * (1 + jitter)]; after a RetryInfo, in [t, t * (1 + jitter)]."""
    budget_tokens: float = 10.0
    """Size of the bucket that all calls of a client share."""
    token_ratio: float = 0.1

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts = {self.max_attempts}: at least 1 (which turns retries off)")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter = {self.jitter}: allowed is [0, 1)")
        if min(self.initial_backoff_s, self.max_backoff_s, self.token_ratio) < 0 or self.backoff_multiplier < 1:
            raise ValueError(f"{self}: durations and token_ratio must not be negative, backoff_multiplier at least 1")
        if self.budget_tokens <= 0:
            raise ValueError(f"budget_tokens = {self.budget_tokens}: must be above 0")


class RetryBudget:
    """The bucket. One a client; safe from several threads."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._max = policy.budget_tokens
        self._ratio = policy.token_ratio
        self._tokens = policy.budget_tokens
        self._lock = threading.Lock()

    @property
    def tokens(self) -> float:
        """What is left, in [0, budget_tokens]."""
        return self._tokens

    def on_success(self) -> None:
        """A call got its first answer."""
        with self._lock:
            self._tokens = min(self._max, self._tokens + self._ratio)

    def on_failure(self) -> bool:
        """A call failed in a way that could be retried. True if the budget allows a retry."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > self._max / 2


class Attempts:
    """The attempts of one call. Made by the client; asked after each failure."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        deadline_s: float,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """`deadline_s` is on `clock`; `random` draws from [0, 1)."""
        self._policy = policy
        self._budget = budget
        self._deadline_s = deadline_s
        self._clock = clock
        self._random = random
        self._failures = 0

    @property
    def remaining_s(self) -> float:
        """Time left until the deadline, at least 0."""
        return max(0.0, self._deadline_s - self._clock())

    def succeeded(self) -> None:
        """The first answer is here: no retry from here on."""
        self._budget.on_success()

    def wait_after(self, error: ShoalError) -> float | None:
        """Seconds to wait before the next attempt; None when `error` is to be raised."""
        if not isinstance(error, (Unavailable, ResourceExhausted)):
            return None
        self._failures += 1
        allowed = self._budget.on_failure()
        if not allowed or self._failures >= self._policy.max_attempts:
            return None
        wait_s = self._backoff_s(error.retry_after_s)
        return wait_s if wait_s < self.remaining_s else None

    def _backoff_s(self, retry_after_s: float | None) -> float:
        policy = self._policy
        exponential_s = policy.initial_backoff_s * policy.backoff_multiplier ** (self._failures - 1)
        backoff_s = min(policy.max_backoff_s, exponential_s) * (1 + policy.jitter * (2 * self._random() - 1))
        if retry_after_s is None:
            return backoff_s
        return max(backoff_s, retry_after_s * (1 + policy.jitter * self._random()))
