"""The sequences in a runner's slots, on the host: what every runner does alike around the forward pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shoal.model_worker.runner.flat_batch import FlatTokens
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.sampling.sampler import Sampler, prompt_logprobs
from shoal.model_worker.step import Admission, IntArray, StepPlan, TokenLogprobs

_LOGPROB_ROWS = 64
"""Rows of prompt logits made at once: 64 of 128k tokens are 34 MB in float32."""

Sampled = tuple[IntArray, IntArray, dict[int, TokenLogprobs]]
"""Slots, their new tokens, and the log-probabilities that were asked for."""


class Sequences:
    """Histories, block tables and sampling state by slot."""

    def __init__(self, slots: SlotArrays, sampler: Sampler, eos_token_ids: tuple[int, ...]) -> None:
        self.slots, self.sampler = slots, sampler
        self._eos_token_ids = eos_token_ids
        self._prompt_logprobs: dict[int, int] = {}

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether `report_prompts` needs the hidden states of every token."""
        return bool(self._prompt_logprobs)

    def release(self, slot: int) -> None:
        """Empties a slot."""
        self.slots.release(slot)
        self.sampler.release(slot)
        self._prompt_logprobs.pop(slot, None)

    def admit(self, admission: Admission) -> None:
        """Fills an empty slot."""
        self.slots.admit(admission)
        params = admission.sampling
        eos = () if params.ignore_eos else self._eos_token_ids
        self.sampler.admit(
            admission.slot,
            params,
            admission.seed,
            admission.choice,
            admission.token_ids,
            admission.num_prompt_tokens,
            (*eos, *params.stop_token_ids),
        )
        if params.prompt_logprobs is not None:
            self._prompt_logprobs[admission.slot] = params.prompt_logprobs

    def sample(self, plan: StepPlan, logits: Tensor) -> Sampled:
        """Samples for the plan's slots that do, then for its forks, which share their source's logits.

        logits: float32 [R, V], a row for each slot with `samples`, in order. Appends the tokens to the histories.
        """
        slots: IntArray = plan.slots[plan.samples].astype(np.int32, copy=False)
        if not len(slots):
            return slots, np.empty(0, np.int32), {}
        if plan.forks:
            row_of = {int(slot): row for row, slot in enumerate(slots)}
            for fork in plan.forks:
                self.slots.fork(fork.source, fork.target)
                self.sampler.fork(fork.source, fork.target, fork.choice)
                if fork.source in self._prompt_logprobs:
                    self._prompt_logprobs[fork.target] = self._prompt_logprobs[fork.source]
            logits = torch.cat((logits, logits[[row_of[fork.source] for fork in plan.forks]]))
            slots = np.concatenate((slots, np.array([fork.target for fork in plan.forks], np.int32)))
        output = self.sampler.sample(logits, slots)
        self.slots.append(slots, output.token_ids)
        return slots, output.token_ids, output.logprobs

    def report_prompts(
        self, plan: StepPlan, tokens: FlatTokens, hidden: Tensor, compute_logits: Callable[[Tensor], Tensor]
    ) -> dict[int, tuple[TokenLogprobs, ...]]:
        """Log-probabilities of the prompt tokens that follow tokens computed in this step. hidden: of all tokens."""
        reported: dict[int, tuple[TokenLogprobs, ...]] = {}
        for index, slot in enumerate(plan.slots.tolist()):
            first, row = int(tokens.first_positions[index]), int(tokens.query_starts[index])
            count = min(int(plan.num_tokens[index]), int(self.slots.num_prompt[slot]) - 1 - first)
            if slot not in self._prompt_logprobs or count <= 0:
                continue
            entries: list[TokenLogprobs] = []
            for begin in range(0, count, _LOGPROB_ROWS):
                end = min(begin + _LOGPROB_ROWS, count)
                next_ids = self.slots.token_ids[slot, first + begin + 1 : first + end + 1]
                logits = compute_logits(hidden[row + begin : row + end])
                on_device = torch.from_numpy(next_ids).to(logits.device)
                entries.extend(prompt_logprobs(logits, on_device, self._prompt_logprobs[slot]))
            reported[slot] = tuple(entries)
        return reported
