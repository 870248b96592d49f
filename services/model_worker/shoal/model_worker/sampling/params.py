"""How tokens are chosen for one request: the validated form of `shoal.api.generation.v1.SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGPROBS = 20
MAX_CHOICES = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Plain data with every default filled in; ranges are checked in `sampling.validate`, before one is built."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True, eq=False)
class SampledSequence:
    """A sequence as samplers know it when it comes to a slot: how tokens are chosen, and the tokens so far."""

    params: SamplingParams
    seed: int
    """Resolved; 64 bits."""
    choice: int
    """Which of the request's completions it is; part of the random stream's key."""
    token_ids: Sequence[int] | NDArray[np.int32]
    """The prompt and what is known of the output, as `step.Admission` has them."""
    num_prompt_tokens: int
    stop_ids: Sequence[int]
    """Not produced before params.min_tokens output tokens: the model's end-of-sequence ids unless ignore_eos, and the
    request's stop tokens."""

    @property
    def num_outputs(self) -> int:
        """Output tokens so far: the position of the next one in the random stream."""
        return len(self.token_ids) - self.num_prompt_tokens
