"""What a step tells the front: one batch for all requests."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from shoal.model_worker.failure import Failure
from shoal.model_worker.request import FinishReason
from shoal.model_worker.step import IntArray, TokenLogprobs


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """A completion ended."""

    stream_id: int
    reason: FinishReason
    stop_token_id: int | None


@dataclass(slots=True)
class StepOutput:
    """Everything that happened to requests since the last one. Handed over, not shared."""

    stream_ids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[R] whose token it is."""
    token_ids: IntArray = field(default_factory=lambda: np.empty(0, np.int32))
    """[R] one sampled token each."""
    started: list[tuple[int, int]] = field(default_factory=list)
    """(stream_id of choice 0, cached prompt tokens) of requests that got a slot for the first time."""
    finished: list[Finished] = field(default_factory=list)
    failed: list[tuple[int, Failure]] = field(default_factory=list)
    """(stream_id of choice 0, why) of requests that ended without finishing."""
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    """(stream_id, of its token in this step)."""
    prompt_logprobs: list[tuple[int, tuple[TokenLogprobs, ...]]] = field(default_factory=list)
    """(stream_id of choice 0, one entry a prompt token but the first), in the step of the first output token."""

    @property
    def empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.token_ids.size or self.started or self.finished or self.failed)


class SchedulerStats(msgspec.Struct, array_like=True):
    """Counters since the start, and gauges of this moment. For metrics and load reports."""

    num_running: int = 0
    """Sequences that hold a slot."""
    num_waiting: int = 0
    """Sequences in the queue."""
    num_waiting_tokens: int = 0
    queue_tokens_per_s: float = 0.0
    """How fast the queue has been draining."""
    num_blocks: int = 0
    num_used_blocks: int = 0
    num_preemptions: int = 0
    prefix_query_tokens: int = 0
    """Prompt tokens of started requests that were looked up."""
    prefix_hit_tokens: int = 0
    """How many of them were found."""
    generated_tokens: int = 0
    computed_tokens: int = 0
    """Tokens run through the model: prompts, recomputation and output."""
