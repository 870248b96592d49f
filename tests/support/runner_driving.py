"""Drives a runner by hand: which tokens of which slots each step computes is the test's choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from shoal.kernels.kv_layout import KVLayout
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.step import Admission, BlockAssignment, Fork, Runner, StepPlan, StepResult

GREEDY = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)


class PagedRunner(Runner, Protocol):
    """A runner with a paged cache."""

    @property
    def layout(self) -> KVLayout:
        """How the KV cache is laid out."""

    def warm_up(self) -> None:
        """Does once what steps would otherwise do first."""


class RunnerDriver:
    """Keeps what a scheduler would: each slot's tokens, how many are computed, and its blocks."""

    def __init__(self, runner: PagedRunner) -> None:
        self.runner = runner
        self._size = runner.layout.block_size
        self._free = list(range(runner.num_blocks))[::-1]
        self.tokens: dict[int, list[int]] = {}
        self.prompts: dict[int, int] = {}
        self._computed: dict[int, int] = {}
        self._blocks: dict[int, list[int]] = {}
        self._admitted: list[Admission] = []
        self._released: list[int] = []

    def admit(
        self,
        slot: int,
        token_ids: Sequence[int],
        sampling: SamplingParams = GREEDY,
        *,
        num_prompt_tokens: int | None = None,
        shared: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        """Admits with the next step; `shared` blocks are a cached prefix."""
        self.tokens[slot], self._computed[slot] = list(token_ids), len(shared) * self._size
        self.prompts[slot] = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
        needed = -(-len(token_ids) // self._size) - len(shared)
        self._blocks[slot] = [*shared, *(self._free.pop() for _ in range(needed))]
        self._admitted.append(
            Admission(
                slot,
                np.array(token_ids, np.int32),
                self.prompts[slot],
                self._computed[slot],
                tuple(self._blocks[slot]),
                sampling,
                seed,
                choice=0,
            )
        )

    def release(self, slot: int) -> None:
        """Releases with the next step."""
        self._free.extend(self._blocks.pop(slot))
        del self.tokens[slot], self._computed[slot], self.prompts[slot]
        self._released.append(slot)

    def blocks(self, slot: int) -> tuple[int, ...]:
        """The slot's block table."""
        return tuple(self._blocks[slot])

    def fork_blocks(self, source: int, target: int) -> tuple[tuple[tuple[int, int], ...], BlockAssignment]:
        """Gives `target` its own copy of the last block that `source` shares with it."""
        index = (len(self.tokens[target]) - 1) // self._size
        copy = self._free.pop()
        self._blocks[target][index:] = [copy]
        return ((self._blocks[source][index], copy),), BlockAssignment(target, index, copy)

    def step(
        self,
        counts: dict[int, int],
        *,
        forks: tuple[Fork, ...] = (),
        block_copies: tuple[tuple[int, int], ...] = (),
        assigned: tuple[BlockAssignment, ...] = (),
    ) -> StepResult:
        """Computes counts[slot] tokens of each slot; samples where that reaches the last known token."""
        extra = []
        for slot, count in counts.items():
            while len(self._blocks[slot]) * self._size < self._computed[slot] + count:
                self._blocks[slot].append(self._free.pop())
                index = len(self._blocks[slot]) - 1
                extra.append(BlockAssignment(slot, index, self._blocks[slot][index]))
        samples = [self._computed[slot] + count == len(self.tokens[slot]) for slot, count in counts.items()]
        plan = StepPlan(
            tuple(self._released),
            tuple(self._admitted),
            block_copies,
            (*assigned, *extra),
            np.array(list(counts), dtype=np.int32),
            np.array(list(counts.values()), dtype=np.int32),
            np.array(samples, dtype=np.bool_),
            forks,
        )
        self._released, self._admitted = [], []
        result = self.runner.submit(plan).result()
        for slot, count in counts.items():
            self._computed[slot] += count
        for fork in forks:
            self.tokens[fork.target] = list(self.tokens[fork.source])
            self._blocks[fork.target] = list(self._blocks[fork.source])
            self._computed[fork.target] = self._computed[fork.source]
            self.prompts[fork.target] = self.prompts[fork.source]
        for slot, token_id in zip(result.slots.tolist(), result.token_ids.tolist(), strict=True):
            self.tokens[slot].append(token_id)
        return result

    def generate(self, slot: int, count: int, *, chunk: int = 10**6) -> list[int]:
        """Generates `count` tokens for one slot alone, its known tokens computed in chunks; returns the new ones."""
        before = len(self.tokens[slot])
        while len(self.tokens[slot]) < before + count:
            self.step({slot: min(chunk, self.pending(slot))})
        return self.tokens[slot][before:]

    def pending(self, slot: int) -> int:
        """Known tokens not yet computed."""
        return len(self.tokens[slot]) - self._computed[slot]


def assert_alike(actual: StepResult, expected: StepResult) -> None:
    """The same slots and tokens; log-probabilities within what sums in another order change in float32."""
    assert actual.slots.tolist() == expected.slots.tolist()
    assert actual.token_ids.tolist() == expected.token_ids.tolist()
    assert actual.logprobs.keys() == expected.logprobs.keys()
    for slot, entry in expected.logprobs.items():
        assert np.isclose(actual.logprobs[slot].logprob, entry.logprob, atol=1e-3)
    assert actual.prompt_logprobs.keys() == expected.prompt_logprobs.keys()
    for slot, entries in expected.prompt_logprobs.items():
        theirs = [entry.logprob for entry in actual.prompt_logprobs[slot]]
        assert np.allclose(theirs, [entry.logprob for entry in entries], atol=1e-3)
