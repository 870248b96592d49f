"""How long a step would take on a real device. Plain numbers and arithmetic: no clock, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, Protocol

SimulatedModel = Literal["llama-3.1-8b-h100"]


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step computes, as far as its duration depends on it."""

    num_decoding: int
    """Sequences that compute one token after their prompt."""
    num_decode_kv_tokens: int
    """Tokens whose KV they read, all together."""
    prefills: Sequence[tuple[int, int]] = ()
    """(tokens computed, tokens before them) of each sequence that computes prompt or what it lost to preemption."""

    @property
    def total_tokens(self) -> int:
        """Tokens computed."""
        return self.num_decoding + sum(num_tokens for num_tokens, _ in self.prefills)


class StepTimer(Protocol):
    """Prices steps."""

    def step_s(self, work: StepWork) -> float:
        """Seconds that the device is busy with `work`."""


@dataclass(frozen=True, slots=True)
class FixedTimer:
    """The same for every step, and something for each of its tokens."""

    base_s: float = 0.0
    token_s: float = 0.0

    def step_s(self, work: StepWork) -> float:
        """See `StepTimer.step_s`."""
        return self.base_s + work.total_tokens * self.token_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineTimer:
    """A sum of what bounds each part of a step: reading weights and KV by bandwidth, prompts by arithmetic.

    All coefficients are seconds, none negative, so a step never gets shorter by having more to do.
    """

    base_s: float
    """Reading the weights, once a step."""
    decode_sequence_s: float
    """For each decoding sequence: its row in every product, and sampling."""
    decode_kv_token_s: float
    """For each token whose KV is read while decoding."""
    prefill_step_s: float
    """More of `base_s` when a step has a prompt's tokens: launches outside of a graph."""
    prefill_token_s: float
    """For each prompt token: its row in every product."""
    prefill_pair_s: float
    """For each pair of a prompt token and a token that it attends to."""
    prefill_context_token_s: float
    """For each token before the computed ones: its KV is read, its block is looked up."""
    time_scale: float = 1.0

    def step_s(self, work: StepWork) -> float:
        """See `StepTimer.step_s`."""
        time_s = (
            self.base_s
            + work.num_decoding * self.decode_sequence_s
            + work.num_decode_kv_tokens * self.decode_kv_token_s
        )
        if work.prefills:
            time_s += self.prefill_step_s
        for num_tokens, num_before in work.prefills:
            num_pairs = num_tokens * (num_before + (num_tokens + 1) / 2)
            time_s += (
                num_tokens * self.prefill_token_s
                + num_pairs * self.prefill_pair_s
                + num_before * self.prefill_context_token_s
            )
        return time_s * self.time_scale


@dataclass(frozen=True, slots=True)
class SimulatedGpu:
    """A model on a device: its timer, and the sizes that a worker there would have."""

    timer: RooflineTimer
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int


LLAMA_8B_H100: Final = SimulatedGpu(
    RooflineTimer(
        base_s=5.378e-3,
        decode_sequence_s=11.94e-6,
        decode_kv_token_s=43.45e-9,
        prefill_step_s=1.755e-3,
        prefill_token_s=20.47e-6,
        prefill_pair_s=0.9346e-9,
        prefill_context_token_s=68.49e-9,
    ),
    block_size=64,
    num_blocks=6400,
    max_num_seqs=512,
    max_num_batched_tokens=8192,
)
"""Llama-3.1-8B in bfloat16 on an H100 80GB with Shoal's own engine.

Non-negative least squares of relative errors over the fourteen points that `benchmarks/results/h100.json` has of it:
decoding 1 to 256 streams at a context of 256 (128 of prompt, the median of 256 tokens), 1 to 32 streams at 8k and 32k,
first tokens of prompts of 64 to 32,768 tokens in steps of at most 8,192, and of 64 tokens after 8k and 32k cached ones.
The largest error is 4.4% (64 tokens after 8,192), the mean 1.6%. The coefficients make sense by themselves: 131,072
bytes of KV a token in 43.45 ns are 3.02 TB/s of the 3.09 that the GPU reads at best; 15 GFLOP a prompt token in 20.5 us
and 524,288 FLOP a pair in 0.93 ns are 730 and 560 TFLOP/s.

The cache is what 90% of the memory leaves beside 16 GB of weights and a step's activations: 54 GB, 8.4 MB a block."""

SIMULATED_GPUS: Final[Mapping[SimulatedModel, SimulatedGpu]] = MappingProxyType({"llama-3.1-8b-h100": LLAMA_8B_H100})
