"""The gate of a gated feed-forward on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.triton_overlap import await_previous, launch_options

_BLOCK = 1024


def act_and_mul(gate_up: Tensor, activation: str = "silu") -> Tensor:
    """See `shoal.kernels.act_and_mul.act_and_mul`."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    if rows:
        grid = (rows, triton.cdiv(width, _BLOCK))
        is_gelu = activation == "gelu_tanh"
        _gate[grid](gate_up, out, width, BLOCK=_BLOCK, IS_GELU=is_gelu, **launch_options(gate_up.device))
    return out


@triton.jit
def _gate(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr, IS_GELU: tl.constexpr, OVERLAPS: tl.constexpr):
    """Both activations are x / (1 + e^-z): see cpu.c."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = at < width
    await_previous(OVERLAPS)
    gate = tl.load(gate_up_ptr + row * 2 * width + at, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + at, mask=exists, other=0.0).to(tl.float32)
    exponent = gate
    if IS_GELU:
        exponent = gate * (gate * gate * 0.071354816 + 1.5957691)
    out = gate / (1.0 + tl.exp(-tl.maximum(exponent, -87.0))) * up  # e^88 is the last before infinity
    tl.store(out_ptr + row * width + at, out.to(out_ptr.dtype.element_ty), mask=exists)
