"""When and how soon to repeat a call that failed before its first chunk, or to go on with a stream that was lost later.

Backoff is exponential with jitter. The budget is the token bucket of gRPC's retry throttling (gRFC A6): each failure
that could be retried costs one token, each success gives `token_ratio` back, and nothing is retried while the bucket
is half empty or less; so a server in trouble sees few repeated calls. A server's `RetryInfo` is a lower bound of the
wait.

Resumed streams draw no tokens from the bucket: what they lost is a connection, which says nothing about the load, and
with the bucket a gateway's end would cost all but a few of a client's streams. They are limited by attempts without
progress instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shoal.rpc.errors import ResourceExhausted, ShoalError, Unavailable

PROGRESS_TOKENS: Final = 16
"""A resumed stream that brought this many tokens, or finished a completion, may be lost as often as a fresh one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client repeats calls that ended UNAVAILABLE or RESOURCE_EXHAUSTED. `max_attempts=1` turns retries off.

    The same backoff holds for streams that are resumed after a loss, from the first wait on after each progress.
    """

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
    max_resumes: int = 10
    """How often in a row a stream is resumed without progress; with the other defaults over some 25 s. 0: never."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts = {self.max_attempts}: at least 1 (which turns retries off)")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter = {self.jitter}: allowed is [0, 1)")
        if min(self.initial_backoff_s, self.max_backoff_s, self.token_ratio) < 0 or self.backoff_multiplier < 1:
            raise ValueError(f"{self}: durations and token_ratio must not be negative, backoff_multiplier at least 1")
        if self.budget_tokens <= 0:
            raise ValueError(f"budget_tokens = {self.budget_tokens}: must be above 0")
        if self.max_resumes < 0:
            raise ValueError(f"max_resumes = {self.max_resumes}: at least 0 (which turns resuming off)")

    def backoff_s(self, num_failures: int, retry_after_s: float | None, random: Callable[[], float]) -> float:
        """How long to wait after failure number `num_failures` (from 1). `random` draws from [0, 1)."""
        exponential_s = self.initial_backoff_s * self.backoff_multiplier ** min(num_failures - 1, 64)
        backoff_s = min(self.max_backoff_s, exponential_s) * (1 + self.jitter * (2 * random() - 1))
        if retry_after_s is None:
            return backoff_s
        return max(backoff_s, retry_after_s * (1 + self.jitter * random()))


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
        wait_s = self._policy.backoff_s(self._failures, error.retry_after_s, self._random)
        return wait_s if wait_s < self.remaining_s else None


class Resumes:
    """The losses of one stream. Asked after each one that a resumed call could mend."""

    def __init__(
        self, policy: RetryPolicy, deadline_s: float, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        """As for `Attempts`."""
        self._policy = policy
        self._deadline_s = deadline_s
        self._clock = clock
        self._random = random
        self._num_losses = 0
        self._progress = (0, 0)

    def wait_after(self, error: ShoalError, progress: tuple[int, int]) -> float | None:
        """Seconds to wait before the stream is resumed; None when `error` is to be raised.

        progress: tokens and finished completions so far.
        """
        (num_tokens, num_finished), self._progress = self._progress, progress
        if progress[0] - num_tokens >= PROGRESS_TOKENS or progress[1] > num_finished:
            self._num_losses = 0
        self._num_losses += 1
        if self._num_losses > self._policy.max_resumes:
            return None
        wait_s = self._policy.backoff_s(self._num_losses, error.retry_after_s, self._random)
        return wait_s if wait_s < self._deadline_s - self._clock() else None
