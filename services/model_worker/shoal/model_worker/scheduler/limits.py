"""What the scheduler may take on, and when a refused client should come back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.model_worker.failure import Failure, RequestRefused
from shoal.model_worker.request import Request

MIN_RETRY_S = 0.1
MAX_RETRY_S = 60.0
UNKNOWN_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Sizes. Raises ValueError when they contradict each other."""

    max_num_seqs: int
    """Slots: sequences in one step."""
    max_num_batched_tokens: int
    """Tokens in one step."""
    max_model_len: int
    """Longest prompt plus output."""
    max_queued_requests: int
    """Requests that may wait beyond those that could start right now."""
    max_queued_tokens: int
    """Tokens that the waiting ones may have to compute. One larger request may wait alone."""
    watermark: float = 0.01
    """Fraction of the blocks kept free for the running when a new sequence starts, against needless preemption."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "max_queued_requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "a step must have room for one token of every running sequence"
            )


class Rate:
    """An average of events a second that forgets with time constant `window_s`, exact from the first event on."""

    def __init__(self, now_s: float, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._start_s = self._last_s = now_s
        self._sum = 0.0

    def add(self, amount: float, now_s: float) -> None:
        """Notes `amount` events."""
        self._decay(now_s)
        self._sum += amount

    def per_second(self, now_s: float) -> float:
        """The average; 0 before anything was noted."""
        self._decay(now_s)
        weight = -math.expm1(-(now_s - self._start_s) / self._window_s)
        return self._sum / (self._window_s * weight) if weight > 0 else 0.0

    def _decay(self, now_s: float) -> None:
        self._sum *= math.exp(-(now_s - self._last_s) / self._window_s)
        self._last_s = now_s


def check_size(request: Request, config: SchedulerConfig, num_blocks: int, block_size: int) -> None:
    """Refuses a request that could never run here, however long it waited. Raises RequestRefused with the numbers."""
    sampling, num_prompt, num_resumed = request.sampling, request.num_prompt_tokens, len(request.resume_token_ids)
    if num_prompt < 1:
        raise _invalid("token_ids", "the prompt is empty; at least one token is needed")
    if sampling.max_tokens < 1 or request.max_len > config.max_model_len:
        raise _invalid(
            "sampling.max_tokens",
            f"{num_prompt} prompt tokens + {sampling.max_tokens} output tokens = {request.max_len}; the output must be "
            f"at least 1 and the sum at most max_model_len = {config.max_model_len}",
        )
    if sampling.n > config.max_num_seqs:
        raise _invalid("sampling.n", f"{sampling.n} is more than the {config.max_num_seqs} sequences run at once")
    if num_resumed and sampling.n > 1:
        raise _invalid("resume_token_ids", f"{num_resumed} tokens with n = {sampling.n}; allowed only with n = 1")
    if num_resumed >= sampling.max_tokens:
        raise _invalid("resume_token_ids", f"{num_resumed} tokens are no fewer than max_tokens = {sampling.max_tokens}")
    num_needed = -(-request.max_len // block_size)
    if num_needed > num_blocks:
        raise _invalid(
            "sampling.max_tokens",
            f"{num_prompt} prompt tokens + {sampling.max_tokens} output tokens need {num_needed} KV blocks of "
            f"{block_size} tokens; this worker has {num_blocks}, so the sum must be at most {num_blocks * block_size}",
        )


def check_queue(
    num_new_tokens: int, num_waiting: int, num_waiting_tokens: int, num_free_slots: int, config: SchedulerConfig
) -> float:
    """How many queued tokens must leave before this request fits into the queue; 0 when it fits."""
    excess = 0.0
    if num_waiting and num_waiting >= config.max_queued_requests + num_free_slots:
        excess = num_waiting_tokens / num_waiting
    if num_waiting:
        excess = max(excess, float(num_waiting_tokens + num_new_tokens - config.max_queued_tokens))
    return excess


def queue_full(excess_tokens: float, tokens_per_s: float, num_waiting: int, num_waiting_tokens: int) -> Failure:
    """The refusal, with the time in which the queue should have drained by `excess_tokens`."""
    retry_s = excess_tokens / tokens_per_s if tokens_per_s > 0 else UNKNOWN_RETRY_S
    return Failure(
        "RESOURCE_EXHAUSTED",
        f"the queue is full: {num_waiting} requests with {num_waiting_tokens} tokens are waiting",
        retry_after_s=min(max(retry_s, MIN_RETRY_S), MAX_RETRY_S),
    )


def _invalid(field: str, problem: str) -> RequestRefused:
    return RequestRefused(Failure("INVALID_ARGUMENT", f"{field}: {problem}", field))
