"""Drawing one token a row by inverting the cumulative distribution, in the vocabulary's order.

Two levels: sums of short blocks find the block, and only that block is accumulated token by token. Accumulating whole
rows takes 1.9 ms for 64 rows of 49,152 tokens on two CPU cores, this 0.2 ms.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 128
"""Divides the common vocabulary sizes (49152, 128256, 151936), so that rows need no padding."""


def block_masses(weights: Tensor) -> Tensor:
    """[R, B] float64 running sums over blocks of 128 tokens of `weights` (float32 [R, V], none negative).

    The last column is each row's total. Blocks are summed in float32, each on its own, and the sums in float64: a row's
    result does not depend on the number of rows, which a sum over whole rows would not promise.
    """
    return _blocks(weights).sum(-1).cumsum(-1, dtype=torch.float64)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """[R] token ids (int64) with probabilities proportional to `weights` (float32 [R, V], none negative).

    `uniforms` is float64 [R] in [0, 1). A token of weight 0 is never drawn. A row of NaN or of zeros only gives some
    token of the vocabulary.
    """
    masses = block_masses(weights)
    total = masses[:, -1]
    target = _below(uniforms * total, total)
    block = _first_above(masses, target)
    before = torch.where(block > 0, masses.gather(-1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    rows = torch.arange(weights.shape[0], device=weights.device)
    inside = _blocks(weights)[rows, block].cumsum(-1, dtype=torch.float64)
    token = _first_above(inside, _below(target - before, inside[:, -1]))
    return (block * _BLOCK + token).clamp(max=weights.shape[-1] - 1)


def _blocks(weights: Tensor) -> Tensor:
    missing = -weights.shape[-1] % _BLOCK
    padded = torch.nn.functional.pad(weights, (0, missing)) if missing else weights
    return padded.view(weights.shape[0], -1, _BLOCK)


def _below(values: Tensor, limits: Tensor) -> Tensor:
    """`values`, but less than `limits`: rounding may have carried one up to its limit, where nothing lies."""
    return torch.minimum(values, torch.nextafter(limits, torch.zeros_like(limits)))


def _first_above(sums: Tensor, targets: Tensor) -> Tensor:
    """[R] index of the first of the rising `sums` [R, N] that exceeds `targets` [R]; N - 1 if none does."""
    return (sums <= targets[:, None]).sum(-1).clamp(max=sums.shape[-1] - 1)
