"""The tables of rotary angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal.model_worker.models.config import ModelConfigError, RopeConfig


class RotaryTables:
    """One table for each rotary embedding of a model, shared by the layers that use it."""

    def __init__(self, head_dim: int, max_position: int, device: torch.device) -> None:
        self._head_dim, self._max_position, self._device = head_dim, max_position, device
        self._tables: dict[RopeConfig | None, Tensor] = {}

    def __getitem__(self, rope: RopeConfig | None) -> Tensor:
        """As `rotary_table`, on the device. None: a table that turns nothing, for layers without positions."""
        if rope not in self._tables:
            table = (
                torch.tensor([[1.0, 0.0]]).repeat(self._max_position, 1)
                if rope is None
                else rotary_table(rope, self._head_dim, self._max_position)
            )
            self._tables[rope] = table.to(self._device)
        return self._tables[rope]


def rotary_table(rope: RopeConfig, head_dim: int, max_position: int) -> Tensor:
    """float32 [max_position, rotary_dim]: the cosines of the rotary_dim / 2 angles of a position, then the sines.

    Angles are computed in float64: at position 100,000 a float32 product is off by some 0.004 radians. Where a scaling
    depends on the length of the context (dynamic, longrope), that is max_position, for every sequence: keys are cached
    rotated, so a sequence cannot change its angles as it grows.
    """
    frequencies = _frequencies(rope, rope.rotary_dim(head_dim), max_position)
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * frequencies
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return (table * rope.attention_factor).float().contiguous()


def _frequencies(rope: RopeConfig, rotary_dim: int, max_position: int) -> Tensor:
    """float64 [rotary_dim / 2], radians per position."""
    if rope.kind == "dynamic":
        return _plain(_dynamic_theta(rope, rotary_dim, max_position), rotary_dim)
    plain = _plain(rope.theta, rotary_dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _stretch_low_frequencies(rope, plain)
    if rope.kind == "yarn":
        return _interpolate_by_ramp(rope, plain)
    if rope.kind == "factors":
        return plain / _divisors(rope.frequency_factors, rotary_dim)
    if rope.kind == "longrope":
        is_long = max_position > rope.original_max_position
        return plain / _divisors(rope.frequency_factors if is_long else rope.short_frequency_factors, rotary_dim)
    return plain


def _plain(theta: float, rotary_dim: int) -> Tensor:
    return theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)


def _divisors(factors: tuple[float, ...], rotary_dim: int) -> Tensor:
    if len(factors) != rotary_dim // 2:
        raise ModelConfigError(f"rope has {len(factors)} frequency factors; need {rotary_dim // 2}")
    return torch.tensor(factors, dtype=torch.float64)


def _dynamic_theta(rope: RopeConfig, rotary_dim: int, max_position: int) -> float:
    """NTK-aware scaling: the base grows with the context once that is longer than the original one."""
    length = max(max_position, rope.original_max_position)
    if rotary_dim == 2:  # one frequency, and that is 1 whatever the base
        return rope.theta
    growth: float = rope.factor * length / rope.original_max_position - (rope.factor - 1)
    return float(rope.theta * growth ** (rotary_dim / (rotary_dim - 2)))


def _stretch_low_frequencies(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Llama 3.1: wavelengths past the original context are divided by the factor, short ones kept, a ramp between."""
    turns = rope.original_max_position * plain / (2 * math.pi)
    ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = ramp.clamp(0.0, 1.0)
    return plain * keep + plain / rope.factor * (1.0 - keep)


def _interpolate_by_ramp(rope: RopeConfig, plain: Tensor) -> Tensor:
    """YaRN: as Llama 3.1, but the ramp runs over dimensions, between those that turn beta_fast and beta_slow times."""
    count = len(plain)
    dim = 2 * count

    def dimension_of(turns: float) -> float:
        return dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    divide = ((torch.arange(count, dtype=torch.float64) - low) / width).clamp(0.0, 1.0)
    return plain / rope.factor * divide + plain * (1.0 - divide)
