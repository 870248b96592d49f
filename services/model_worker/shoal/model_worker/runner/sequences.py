"""The sequences in a runner's slots, on the host: what every runner does alike around the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from shoal.model_worker.runner.flat_batch import FlatTokens
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.sampling.params import SampledSequence
from shoal.model_worker.sampling.sampler import prompt_logprobs
from shoal.model_worker.step import Admission, Fork, StepPlan, TokenLogprobs

_LOGPROB_ROWS = 64
"""Rows of prompt logits made at once: 64 of 128k tokens are 34 MB in float32."""


class SamplingSlots(Protocol):
    """A sampler's state by slot; see `sampling.sampler.Sampler`."""

    def admit(self, slot: int, sequence: SampledSequence) -> None:
        """Fills a free slot."""

    def fork(self, source: int, target: int, choice: int) -> None:
        """Copies a slot to a free one."""

    def release(self, slot: int) -> None:
        """Empties a slot."""


class Sequences:
    """Histories, block tables and sampling state by slot."""

    def __init__(self, slots: SlotArrays, sampler: SamplingSlots, eos_token_ids: tuple[int, ...]) -> None:
        self._slots, self._sampler = slots, sampler
        self._eos_token_ids = eos_token_ids
        self._prompt_logprobs: dict[int, int] = {}

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether `report_prompts` needs the hidden states of every token."""
        return bool(self._prompt_logprobs)

    def release(self, slot: int) -> None:
        """Empties a slot."""
        self._slots.release(slot)
        self._sampler.release(slot)
        self._prompt_logprobs.pop(slot, None)

    def admit(self, admission: Admission) -> None:
        """Fills an empty slot."""
        self._slots.admit(admission)
        params = admission.sampling
        eos = () if params.ignore_eos else self._eos_token_ids
        stop_ids = (*eos, *params.stop_token_ids)
        sequence = SampledSequence(
            params, admission.seed, admission.choice, admission.token_ids, admission.num_prompt_tokens, stop_ids
        )
        self._sampler.admit(admission.slot, sequence)
        if params.prompt_logprobs is not None:
            self._prompt_logprobs[admission.slot] = params.prompt_logprobs

    def fork(self, fork: Fork) -> None:
        """Copies a slot to an empty one."""
        self._slots.fork(fork.source, fork.target)
        self._sampler.fork(fork.source, fork.target, fork.choice)
        if fork.source in self._prompt_logprobs:
            self._prompt_logprobs[fork.target] = self._prompt_logprobs[fork.source]

    def report_prompts(
        self, plan: StepPlan, tokens: FlatTokens, hidden: Tensor, compute_logits: Callable[[Tensor], Tensor]
    ) -> dict[int, tuple[TokenLogprobs, ...]]:
        """Log-probabilities of the prompt tokens that follow tokens computed in this step. hidden: of all tokens."""
        reported: dict[int, tuple[TokenLogprobs, ...]] = {}
        for index, slot in enumerate(plan.slots.tolist()):
            first, row = int(tokens.first_positions[index]), int(tokens.query_starts[index])
            count = min(int(plan.num_tokens[index]), int(self._slots.num_prompt[slot]) - 1 - first)
            if slot not in self._prompt_logprobs or count <= 0:
                continue
            entries: list[TokenLogprobs] = []
            for begin in range(0, count, _LOGPROB_ROWS):
                end = min(begin + _LOGPROB_ROWS, count)
                next_ids = self._slots.token_ids[slot, first + begin + 1 : first + end + 1]
                logits = compute_logits(hidden[row + begin : row + end])
                on_device = torch.from_numpy(next_ids).to(logits.device)
                entries.extend(prompt_logprobs(logits, on_device, self._prompt_logprobs[slot]))
            reported[slot] = tuple(entries)
        return reported
