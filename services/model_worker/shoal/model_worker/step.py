"""What crosses the edge between the scheduler and a runner: `StepPlan` in, `StepResult` out, and nothing else.

A runner keeps one *slot* per running sequence: its token history, block table and sampling state live there, so a plan
names only what changed since the last step (the host does O(changed) work, never O(running)). There is no prefill
phase and no decode phase: a step computes some tokens of some slots, and samples where a slot has caught up.

Block ids index the runner's paged KV cache. No torch here: the scheduler and its property tests run anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.model_worker.sampling.params import SamplingParams

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """Fills an empty slot with a sequence that starts, or comes back after preemption or from another worker."""

    slot: int
    token_ids: IntArray
    """Prompt, then output known so far. Read-only; shared with the scheduler."""
    num_prompt_tokens: int
    """How many of `token_ids` are prompt; the rest counts as output for penalties, seeds and min_tokens."""
    num_computed_tokens: int
    """Tokens whose KV already lies in `block_ids` (prefix hit). Always less than len(token_ids)."""
    block_ids: tuple[int, ...]
    """The block table so far, in order of position; covers at least the tokens of this step."""
    sampling: SamplingParams
    seed: int
    """Resolved 64-bit seed."""
    choice: int
    """Which of the request's n completions this is; part of the random stream's key."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Copies `source`'s slot (history, block table, sampling state) to the empty slot `target` as choice `choice`.

    Applied after the step's forward pass and before sampling, when `source`'s prompt is complete: every fork samples
    its first token from `source`'s logits.
    """

    source: int
    target: int
    choice: int


@dataclass(frozen=True, slots=True)
class BlockAssignment:
    """Puts `block_id` at position `index` of a slot's block table (appending or, after copy-on-write, replacing)."""

    slot: int
    index: int
    block_id: int


class LayerFeed(Protocol):
    """KV of earlier blocks that arrives layer by layer while a step computes."""

    def wait(self, layer: int) -> None:
        """Returns when what is launched from here on finds a layer's, and those of layers before it; or when they will
        not come any more, and the step is for nothing. By the runner's thread, which computes on its current stream."""

    def wait_end(self) -> None:
        """Returns when it is known whether all of it came."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Applied in the order of the fields."""

    released: tuple[int, ...]
    """Slots emptied."""
    admitted: tuple[Admission, ...]
    block_copies: tuple[tuple[int, int], ...]
    """(source, target) block ids whose KV is copied before anything is computed (copy-on-write)."""
    assigned: tuple[BlockAssignment, ...]
    slots: IntArray
    """[S] the scheduled slots, each once."""
    num_tokens: IntArray
    """[S] tokens to compute for each, >= 1, starting at the slot's number of computed tokens."""
    samples: NDArray[np.bool_]
    """[S] whether this step reaches the slot's last known token, so that the next one is sampled."""
    forks: tuple[Fork, ...]
    feed: LayerFeed | None = None
    """To wait for before each layer, where a load is under way. The result counts only if all of it came."""

    @property
    def total_tokens(self) -> int:
        """Tokens computed in this step."""
        return int(self.num_tokens.sum())


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, from the model's own distribution (before temperature and filters)."""

    token_id: int
    logprob: float
    rank: int
    """1 is the most likely."""
    top: tuple[tuple[int, float], ...]
    """(token id, logprob), most likely first; as many as asked for."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced. The runner knows the tokens already."""

    slots: IntArray
    """[R] slots that sampled: those of the plan with `samples`, in the plan's order, then its forks' targets."""
    token_ids: IntArray
    """[R] the sampled tokens."""
    logprobs: dict[int, TokenLogprobs]
    """By slot, for those whose parameters ask for logprobs."""
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]]
    """By slot, for those that ask for them: entries for the prompt tokens whose predecessors were computed in this
    step (the first prompt token has no entry)."""


class PendingStep(Protocol):
    """A step that was submitted."""

    def result(self) -> StepResult:
        """What it produced, once it has ended. Called once, in the order of submission."""


class Runner(Protocol):
    """Executes plans. One per engine process, used by its loop only; not thread-safe.

    Steps run in the order of submission, each after the one before, so that a plan may build on tokens and KV that
    only the device has seen. An exception from a step means that the runner's state is lost and the process must end.
    """

    @property
    def num_blocks(self) -> int:
        """KV blocks in the cache."""

    @property
    def max_pending_steps(self) -> int:
        """Steps that may be submitted without their results taken: 1 where a step runs inside of `submit`."""

    def submit(self, plan: StepPlan) -> PendingStep:
        """Starts a step."""


@dataclass(frozen=True, slots=True)
class EndedStep:
    """A step that ran while it was submitted."""

    ended_with: StepResult

    def result(self) -> StepResult:
        """See `PendingStep.result`."""
        return self.ended_with


class SynchronousRunner(ABC):
    """A runner whose steps end before the next thing happens."""

    max_pending_steps: int = 1

    @abstractmethod
    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step to the end."""

    def submit(self, plan: StepPlan) -> EndedStep:
        """See `Runner.submit`."""
        return EndedStep(self.execute(plan))
