"""Running samplers of the device beside the CPU's, and judging a token by the exact distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shoal.kernels.sampling import GREEDY, SLOT_DTYPE, SamplingState, SamplingWorkspace, reference
from shoal.kernels.sampling import sample as dispatched
from shoal.model_worker.sampling.device import DeviceSampler, SampleFunction
from shoal.model_worker.sampling.params import SampledSequence, SamplingParams

PROMPT = (3, 1, 4, 1, 5)

EACH_ALONE = [
    SamplingParams(temperature=0.0),
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=1e-40),
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=1.0),
    SamplingParams(top_k=1),
    SamplingParams(top_k=7),
    SamplingParams(top_k=40),
    SamplingParams(top_p=1e-6),
    SamplingParams(top_p=0.8),
    SamplingParams(top_p=0.999),
    SamplingParams(typical_p=0.2),
    SamplingParams(typical_p=0.9),
    SamplingParams(logit_bias={0: 3.0, 7: 4.0, 9: -100.0, 49: 5.5}),
    SamplingParams(temperature=0.0, logit_bias={token: 20.0 - token for token in range(0, 50, 3)}),
    SamplingParams(temperature=0.0, frequency_penalty=0.9),
    SamplingParams(presence_penalty=-1.5),
    SamplingParams(repetition_penalty=1.6),
    SamplingParams(temperature=0.0, min_tokens=3),
]

FILTERS_AND_EDITS = [
    SamplingParams(temperature=0.7, top_k=20, top_p=0.8),
    SamplingParams(temperature=1.5, min_p=0.02, top_k=30, top_p=0.9, typical_p=0.9),
    SamplingParams(min_p=0.01, top_p=0.95, frequency_penalty=1.0, presence_penalty=0.5),
    SamplingParams(temperature=0.01, top_p=0.9, typical_p=0.5),
    SamplingParams(temperature=2.0, top_k=45, typical_p=0.7, repetition_penalty=0.7, logit_bias={2: 5.0}),
    SamplingParams(top_p=0.6, min_tokens=2, logit_bias={11: -2.0}, repetition_penalty=1.2, presence_penalty=0.4),
]


def make_logits(rows: int, vocab_size: int, *, seed: int = 0, spread: float = 2.0) -> Tensor:
    """Normally distributed float32 logits on the CPU."""
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def make_sampler(
    num_slots: int, vocab_size: int, *, chunk: int = 4096, sample: SampleFunction = dispatched, device: str = "cpu"
) -> DeviceSampler:
    """A device's sampler that reads `chunk` tokens at once."""
    place = torch.device(device)
    state = SamplingState.allocate(num_slots, vocab_size, place)
    return DeviceSampler(state, SamplingWorkspace.allocate(num_slots, vocab_size, place, chunk), sample)


def admit_all(samplers: Sequence[DeviceSampler], kinds: Sequence[SamplingParams], *, first_seed: int = 77) -> None:
    """Slot i with kinds[i], after `PROMPT`; token 0 and 8 stop."""
    for sampler in samplers:
        for slot, params in enumerate(kinds):
            sampler.admit(slot, SampledSequence(params, first_seed + slot, slot % 3, PROMPT, len(PROMPT), (0, 8)))
        sampler.flush()


def is_right(logits: Tensor, slot: int, state: SamplingState, token: int, tolerance: float = 1e-5) -> bool:
    """Whether `token` is what a slot's state says for a row of logits, or beside it by no more than rounding moves.

    `state` is as it was before the token. The share of [0, 1) that is the token's must lie within `tolerance` of the
    number drawn.
    """
    params = state.slots[slot].cpu().numpy().view(SLOT_DTYPE)[0]
    row = reference.edit(logits.cpu().numpy(), slot, state)
    if params["flags"] & GREEDY:
        return token == int(row.argmax())
    scaled = (row - row.max()).astype(np.float64) / float(params["temperature"])
    weights = reference.filtered_weights(scaled, params)
    ends = weights.cumsum() / weights.sum()
    number = reference.uniform(int(params["seed"]), int(params["num_outputs"]), int(params["choice"]))
    begin = ends[token - 1] if token else 0.0
    return bool(weights[token] > 0 and begin - tolerance <= number <= ends[token] + tolerance)
