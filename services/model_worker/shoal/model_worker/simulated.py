"""A runner without a model: tokens are hashes of the history, and steps take as long as they are told to.

Output is deterministic by history, seed and choice, as with a real model, so that gateways, routers and failover can
be tested and measured on a machine that could not run the model. Its KV cache is empty: block ids are ignored.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass

import numpy as np

from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.step import IntArray, StepPlan, StepResult, SynchronousRunner, TokenLogprobs


@dataclass(slots=True)
class _Slot:
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed: int
    history_hash: int
    """Of the computed tokens."""
    sampling: SamplingParams
    seed: int
    choice: int


class SimulatedRunner(SynchronousRunner):
    """Implements `step.Runner`. The last id of the vocabulary ends the output; about one token in 64 is that one."""

    def __init__(self, *, num_blocks: int, vocab_size: int, step_s: float, token_s: float) -> None:
        self._num_blocks = num_blocks
        self._vocab_size = vocab_size
        self._step_s = step_s
        self._token_s = token_s
        self._slots: dict[int, _Slot] = {}

    @property
    def num_blocks(self) -> int:
        """KV blocks that it pretends to have."""
        return self._num_blocks

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step."""
        end_s = time.monotonic() + self._step_s + plan.total_tokens * self._token_s
        self._apply(plan)
        prompt_logprobs = {}
        for slot, num_tokens in zip(plan.slots.tolist(), plan.num_tokens.tolist(), strict=True):
            state = self._slots[slot]
            start = state.num_computed
            state.num_computed += num_tokens
            state.history_hash = _hash(state.token_ids[start : state.num_computed], state.history_hash)
            if state.sampling.prompt_logprobs is not None:
                stop = min(state.num_computed + 1, state.num_prompt_tokens)
                prompt_logprobs[slot] = tuple(_logprobs(t) for t in state.token_ids[start + 1 : stop])
        sampled: list[int] = plan.slots[plan.samples].tolist()
        for fork in plan.forks:
            source = self._slots[fork.source]
            self._slots[fork.target] = _Slot(
                list(source.token_ids),
                source.num_prompt_tokens,
                source.num_computed,
                source.history_hash,
                source.sampling,
                source.seed,
                fork.choice,
            )
            sampled.append(fork.target)
        token_ids = [self._sample(self._slots[slot]) for slot in sampled]
        logprobs = {
            slot: _logprobs(token_id)
            for slot, token_id in zip(sampled, token_ids, strict=True)
            if self._slots[slot].sampling.logprobs is not None
        }
        if (remaining_s := end_s - time.monotonic()) > 0:
            time.sleep(remaining_s)
        return StepResult(np.array(sampled, np.int32), np.array(token_ids, np.int32), logprobs, prompt_logprobs)

    def _apply(self, plan: StepPlan) -> None:
        for slot in plan.released:
            del self._slots[slot]
        for admission in plan.admitted:
            num_computed = admission.num_computed_tokens
            self._slots[admission.slot] = _Slot(
                admission.token_ids.tolist(),
                admission.num_prompt_tokens,
                num_computed,
                _hash(admission.token_ids[:num_computed], 0),
                admission.sampling,
                admission.seed,
                admission.choice,
            )

    def _sample(self, state: _Slot) -> int:
        draw = zlib.crc32(f"{state.seed}/{state.choice}".encode(), state.history_hash)
        eos_token_id = self._vocab_size - 1
        num_output = len(state.token_ids) - state.num_prompt_tokens
        ends = draw % 64 == 0 and not state.sampling.ignore_eos and num_output >= state.sampling.min_tokens
        token_id = eos_token_id if ends else (draw >> 6) % max(1, eos_token_id)
        state.token_ids.append(token_id)
        return token_id


def _hash(token_ids: IntArray | list[int], history_hash: int) -> int:
    # Token by token, so that the hash does not depend on how a prompt was cut into steps; crc32 chains that way.
    return zlib.crc32(np.asarray(token_ids, "<i4").tobytes(), history_hash)


def _logprobs(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(token_id, -1.0, 1, ())
