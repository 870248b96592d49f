"""A runner without a model: its next token is a hash of what it finds in its KV cache, and it checks every plan.

If the scheduler or the cache manager ever hands out a wrong, stale or overwritten block, the history read back differs
from the sequence's own and the runner fails at that step.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.step import StepPlan, StepResult, SynchronousRunner, TokenLogprobs


@dataclass
class _Slot:
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed: int
    block_ids: list[int]
    sampling: SamplingParams
    seed: int
    choice: int

    def copy(self, choice: int) -> _Slot:
        return _Slot(
            list(self.token_ids),
            self.num_prompt_tokens,
            self.num_computed,
            list(self.block_ids),
            self.sampling,
            self.seed,
            choice,
        )


def next_token(history_hash: int, seed: int, choice: int, vocab_size: int) -> int:
    """The token that follows a history."""
    return zlib.crc32(f"{history_hash}/{seed}/{choice}".encode()) % vocab_size


def chain(history_hash: int, token_id: int) -> int:
    """The hash of a history that is longer by one token."""
    return zlib.crc32(token_id.to_bytes(4, "little"), history_hash)


def expected_output(request: Request, choice: int, vocab_size: int, eos: frozenset[int]) -> list[int]:
    """What a request must yield, whatever else runs beside it."""
    history_hash = 0
    for token_id in request.prompt_token_ids:
        history_hash = chain(history_hash, token_id)
    output: list[int] = []
    while True:
        output.append(next_token(history_hash, request.seed, choice, vocab_size))
        if request.finish_reason(len(output), output[-1], eos) is not None:
            return output
        history_hash = chain(history_hash, output[-1])


class HistoryRunner(SynchronousRunner):
    """Implements `step.Runner` over a cache of [num_blocks, block_size] history hashes."""

    def __init__(self, *, num_blocks: int, block_size: int, max_num_seqs: int, vocab_size: int = 1000) -> None:
        self._kv = np.full((num_blocks, block_size), -1, np.int64)
        self._slots: dict[int, _Slot] = {}
        self._is_fed = False
        self._max_num_seqs = max_num_seqs
        self._vocab_size = vocab_size
        self.plans: list[StepPlan] = []

    @property
    def num_blocks(self) -> int:
        return len(self._kv)

    @property
    def kv(self) -> NDArray[np.int64]:
        """The cache: a row a block."""
        return self._kv

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        self._apply(plan)
        self._is_fed = plan.feed is not None
        if plan.feed is not None:
            plan.feed.wait(1 << 30)  # it looks at all layers at once
        assert len(set(plan.slots.tolist())) == len(plan.slots)
        prompt_logprobs = {}
        for slot, num_tokens, samples in zip(plan.slots.tolist(), plan.num_tokens, plan.samples, strict=True):
            state = self._slots[slot]
            start = state.num_computed
            self._compute(state, int(num_tokens))
            assert bool(samples) == (state.num_computed == len(state.token_ids))
            if state.sampling.prompt_logprobs is not None:
                end = min(state.num_computed + 1, state.num_prompt_tokens)
                prompt_logprobs[slot] = tuple(TokenLogprobs(t, 0.0, 1, ()) for t in state.token_ids[start + 1 : end])
        sampled = [slot for slot, samples in zip(plan.slots.tolist(), plan.samples, strict=True) if samples]
        for fork in plan.forks:
            assert fork.target not in self._slots
            assert fork.source in sampled
            self._slots[fork.target] = self._slots[fork.source].copy(fork.choice)
            sampled.append(fork.target)
        token_ids = [self._sample(self._slots[slot]) for slot in sampled]
        logprobs = {
            slot: TokenLogprobs(token_id, 0.0, 1, ())
            for slot, token_id in zip(sampled, token_ids, strict=True)
            if self._slots[slot].sampling.logprobs is not None
        }
        return StepResult(np.array(sampled, np.int32), np.array(token_ids, np.int32), logprobs, prompt_logprobs)

    def _apply(self, plan: StepPlan) -> None:
        for slot in plan.released:
            del self._slots[slot]
        for admission in plan.admitted:
            assert admission.slot not in self._slots
            assert 0 <= admission.slot < self._max_num_seqs
            assert 0 <= admission.num_computed_tokens < len(admission.token_ids)
            self._slots[admission.slot] = _Slot(
                admission.token_ids.tolist(),
                admission.num_prompt_tokens,
                admission.num_computed_tokens,
                list(admission.block_ids),
                admission.sampling,
                admission.seed,
                admission.choice,
            )
        targets = [target for _, target in plan.block_copies]
        assert len(set(targets)) == len(targets), "the order of copies would matter"
        for source, target in plan.block_copies:
            self._kv[target] = self._kv[source]
        for assigned in plan.assigned:
            table = self._slots[assigned.slot].block_ids
            assert assigned.index <= len(table)
            table[assigned.index : assigned.index + 1] = [assigned.block_id]

    def _compute(self, state: _Slot, num_tokens: int) -> None:
        assert 1 <= num_tokens <= len(state.token_ids) - state.num_computed
        block_size = self._kv.shape[1]
        history_hash = 0
        for position in range(state.num_computed):
            history_hash = chain(history_hash, state.token_ids[position])
            found = self._kv[state.block_ids[position // block_size], position % block_size]
            if self._is_fed and found != history_hash:  # whatever comes of that must not count
                history_hash = int(found)
            assert found == history_hash, f"position {position} holds another history's KV"
        for position in range(state.num_computed, state.num_computed + num_tokens):
            history_hash = chain(history_hash, state.token_ids[position])
            self._kv[state.block_ids[position // block_size], position % block_size] = history_hash
        state.num_computed += num_tokens

    def _sample(self, state: _Slot) -> int:
        position = state.num_computed - 1
        block_size = self._kv.shape[1]
        history_hash = int(self._kv[state.block_ids[position // block_size], position % block_size])
        token_id = next_token(history_hash, state.seed, state.choice, self._vocab_size)
        state.token_ids.append(token_id)
        return token_id
