"""A runner without a model: tokens are hashes of the history, and steps take as long as a timer says.

Output is deterministic by history, seed and choice, as with a real model, so that gateways, routers and failover can
be tested and measured on a machine that could not run the model. Its KV cache is empty: block ids are ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shoal.model_worker.simulated_sequences import SimulatedSequences
from shoal.model_worker.simulated_timing import StepTimer
from shoal.model_worker.step import StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """A step that ends at `end_s` and was computed when it was submitted."""

    ended_with: StepResult
    end_s: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def result(self) -> StepResult:
        """Sleeps until the step's end. See `PendingStep.result`."""
        if (remaining_s := self.end_s - self.clock()) > 0:
            self.sleep(remaining_s)
        return self.ended_with


class SimulatedRunner:
    """Implements `step.Runner`. The last id of the vocabulary ends the output; about one token in 64 is that one.

    As on a GPU, a step that was submitted while another ran starts at that one's end, so that the host's work between
    the two costs nothing. It never spins: an idle worker takes no time, and 8 workers with 32 streams each at 120 steps
    a second took 0.36 of a core in their engines and 0.45 in their fronts (on a busy machine with two).
    """

    def __init__(
        self,
        timer: StepTimer,
        *,
        num_blocks: int,
        num_slots: int,
        vocab_size: int,
        max_pending_steps: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._timer = timer
        self._num_blocks = num_blocks
        self._max_pending_steps = max_pending_steps
        self._sequences = SimulatedSequences(num_slots, vocab_size)
        self._clock = clock
        self._sleep = sleep
        self._busy_until_s = 0.0

    @property
    def num_blocks(self) -> int:
        """KV blocks that it pretends to have."""
        return self._num_blocks

    @property
    def max_pending_steps(self) -> int:
        """See `step.Runner`."""
        return self._max_pending_steps

    def submit(self, plan: StepPlan) -> SimulatedStep:
        """Starts a step, or queues it behind the one that runs."""
        start_s = max(self._clock(), self._busy_until_s)
        work = self._sequences.apply(plan)
        self._busy_until_s = start_s + self._timer.step_s(work)
        return SimulatedStep(self._sequences.compute(plan), self._busy_until_s, self._clock, self._sleep)
