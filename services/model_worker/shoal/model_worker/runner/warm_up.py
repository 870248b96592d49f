"""Steps that nobody asked for: to compile, touch and measure what real ones will need."""

from __future__ import annotations

import numpy as np

from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.step import Admission, StepPlan


def prompt_plan(num_tokens: int, block_size: int) -> StepPlan:
    """Admits a prompt to slot 0, in the first blocks, computes all of it and samples a token."""
    blocks = tuple(range(-(-num_tokens // block_size)))
    params = SamplingParams(temperature=0.0)
    admission = Admission(0, np.zeros(num_tokens, np.int32), num_tokens, 0, blocks, params, seed=0, choice=0)
    slots, counts = np.zeros(1, np.int32), np.full(1, num_tokens, np.int32)
    return StepPlan((), (admission,), (), (), slots, counts, np.ones(1, np.bool_), ())
