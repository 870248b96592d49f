"""RMSNorm on a GPU, one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.triton_overlap import await_previous, launch_options


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `shoal.kernels.rms_norm.rms_norm`."""
    return _run(x, x, weight, eps, adds=False)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `shoal.kernels.rms_norm.add_rms_norm`."""
    return _run(x, residual, weight, eps, adds=True)


def _run(x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, adds: bool) -> Tensor:
    rows, hidden = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    if rows:
        warps = min(16, max(1, block // 512))
        overlap = launch_options(x.device)
        _norm_row[(rows,)](x, residual, weight, out, hidden, eps, BLOCK=block, ADDS=adds, num_warps=warps, **overlap)
    return out


@triton.jit
def _norm_row(
    x_ptr, residual_ptr, weight_ptr, out_ptr, hidden, eps, BLOCK: tl.constexpr, ADDS: tl.constexpr,
    OVERLAPS: tl.constexpr
):  # fmt: skip
    at = tl.arange(0, BLOCK)
    exists = at < hidden
    row = tl.program_id(0).to(tl.int64) * hidden
    weight = tl.load(weight_ptr + at, mask=exists, other=0.0).to(tl.float32)
    await_previous(OVERLAPS)
    x = tl.load(x_ptr + row + at, mask=exists, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(residual_ptr + row + at, mask=exists, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + row + at, rounded, mask=exists)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / hidden + eps)
    tl.store(out_ptr + row + at, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=exists)
