"""silu_and_mul in float32 torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `shoal.kernels.silu_and_mul.silu_and_mul`."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def bytes_moved(rows: int, width: int, itemsize: int) -> int:
    """Two halves in, one out."""
    return 3 * rows * width * itemsize


def flops(rows: int, width: int) -> int:
    """Counting the exponential as one: negate, exp, add, divide, multiply."""
    return 5 * rows * width
