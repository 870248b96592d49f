"""act_and_mul in float32 torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def act_and_mul(gate_up: Tensor, activation: str = "silu") -> Tensor:
    """See `shoal.kernels.act_and_mul.act_and_mul`."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (activate(gate, activation) * up).to(gate_up.dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    """x * sigmoid(z) with z = x for SiLU.

    GELU's 0.5 (1 + tanh u) is sigmoid(2 u), which unlike the former keeps its digits where tanh u is near -1.
    """
    if activation == "gelu_tanh":
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * torch.sigmoid(x)


def bytes_moved(rows: int, width: int, itemsize: int) -> int:
    """Two halves in, one out."""
    return 3 * rows * width * itemsize


def flops(rows: int, width: int, activation: str = "silu") -> int:
    """Counting the exponential as one: negate, exp, add, divide, multiply; GELU's exponent takes four more."""
    return (5 if activation == "silu" else 9) * rows * width
