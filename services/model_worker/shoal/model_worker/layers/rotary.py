"""The table of rotary angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal.model_worker.models.config import ModelConfigError, RopeConfig


def rotary_table(rope: RopeConfig, head_dim: int, max_position: int) -> Tensor:
    """float32 [max_position, head_dim]: the cosines of the head_dim / 2 angles of a position, then the sines.

    Angles are computed in float64: at position 100,000 a float32 product is off by some 0.004 radians.
    """
    frequencies = _frequencies(rope, head_dim)
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float().contiguous()


def _frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    plain = rope.theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _stretch_low_frequencies(rope, plain)
    if rope.kind == "factors":
        if len(rope.frequency_factors) != head_dim // 2:
            raise ModelConfigError(f"rope has {len(rope.frequency_factors)} frequency factors; need {head_dim // 2}")
        return plain / torch.tensor(rope.frequency_factors, dtype=torch.float64)
    raise ModelConfigError(f"rope kind {rope.kind!r} is not supported; use default, linear, llama3 or factors")


def _stretch_low_frequencies(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Llama 3.1: wavelengths past the original context are divided by the factor, short ones kept, a ramp between."""
    turns = rope.original_max_position * plain / (2 * math.pi)
    ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = ramp.clamp(0.0, 1.0)
    return plain * keep + plain / rope.factor * (1.0 - keep)
