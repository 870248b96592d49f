"""One worker in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shoal.model_worker.kv_cache import KVCacheManager, KvEvent
from shoal.model_worker.request import Request
from shoal.model_worker.scheduler import PriorityPolicy, Scheduler, SchedulerConfig, StepOutput
from shoal.model_worker.simulated_sequences import SimulatedSequences
from shoal.model_worker.simulated_timing import SimulatedGpu
from shoal.model_worker.step import StepPlan, StepResult

MAX_PENDING_STEPS = 2
"""As on a GPU."""
PRIORITY_AGING_S = 30.0
MAX_QUEUED_REQUESTS = 1 << 16
MAX_QUEUED_TOKENS = 1 << 30
"""Large: an overloaded worker shows in its times, not in refusals."""


class VirtualWorker:
    """Mirrors `shoal.model_worker.engine.Engine`, which waits for its device; here its caller tells of time.

    `offer` a request at any time. Whenever `offer` or `end_step` answers with a time, call `end_step` then.
    """

    def __init__(self, gpu: SimulatedGpu, *, vocab_size: int, max_model_len: int, clock: Callable[[], float]) -> None:
        self._timer = gpu.timer
        self._max_num_seqs = gpu.max_num_seqs
        self._clock = clock
        self._cache = KVCacheManager(gpu.num_blocks, gpu.block_size)
        limits = SchedulerConfig(
            max_num_seqs=gpu.max_num_seqs,
            max_num_batched_tokens=gpu.max_num_batched_tokens,
            max_model_len=max_model_len,
            max_queued_requests=MAX_QUEUED_REQUESTS,
            max_queued_tokens=MAX_QUEUED_TOKENS,
        )
        policy, eos = PriorityPolicy(PRIORITY_AGING_S), frozenset((vocab_size - 1,))
        self._scheduler = Scheduler(limits, self._cache, policy, eos_token_ids=eos, clock=clock)
        self._sequences = SimulatedSequences(gpu.max_num_seqs, vocab_size)
        self._pending: deque[tuple[StepPlan, StepResult, float]] = deque()
        self._busy_until_s = 0.0
        self.stopped_until_s = 0.0
        """Steps that are planned before this begin then."""
        self.slowness = 1.0
        """How many times longer its steps take than they should."""
        self.busy_s = 0.0
        """Time that steps took so far."""
        self.num_steps = 0

    @property
    def num_preemptions(self) -> int:
        """Sequences sent back to the queue so far."""
        return self._scheduler.stats.num_preemptions

    def load(self) -> tuple[int, float, float]:
        """What it reports to Envoy: tokens generated so far, used share of KV blocks, waiting requests over slots."""
        stats = self._scheduler.stats
        return stats.generated_tokens, stats.num_used_blocks / stats.num_blocks, stats.num_waiting / self._max_num_seqs

    def offer(self, request: Request) -> float | None:
        """Queues a request. Returns when its step ends if the worker was idle. Raises RequestRefused."""
        self._scheduler.add(request)
        return None if self._pending else self._plan()

    def cancel(self, stream_id: int) -> None:
        """Nobody wants it any more. What the device computes of it already still takes its time."""
        self._scheduler.cancel(stream_id)

    def end_step(self) -> tuple[StepOutput, list[KvEvent], float | None]:
        """Takes in the oldest step, which ends at this moment. Returns what it did, and when the next one ends."""
        plan, result, _ = self._pending.popleft()
        self._scheduler.update(plan, result)
        return self._scheduler.take_output(), self._cache.take_events(), self._plan()

    def _plan(self) -> float | None:
        """Submits what can be submitted. Returns when the oldest step ends."""
        pending = self._pending
        while len(pending) < MAX_PENDING_STEPS and (plan := self._scheduler.schedule()) is not None:
            assert not plan.forks, "a trace asks for one completion of each prompt"
            step_s = self.slowness * self._timer.step_s(self._sequences.apply(plan))
            self._busy_until_s = max(self._clock(), self._busy_until_s, self.stopped_until_s) + step_s
            self.busy_s += step_s
            self.num_steps += 1
            pending.append((plan, self._sequences.compute(plan), self._busy_until_s))
        return pending[0][2] if pending else None
