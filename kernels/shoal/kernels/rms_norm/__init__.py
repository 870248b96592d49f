"""Root mean square normalisation of rows (Zhang and Sennrich 2019), alone or after a residual addition."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.native import DTYPE_CODES, library
from shoal.kernels.rms_norm import reference

__all__ = ["add_rms_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, row by row, computed in float32.

    x: [rows, hidden] contiguous, float32 or bfloat16; weight: [hidden], float32 or of x's dtype. Returns a new tensor,
    rounded once.
    """
    _check(x, weight)
    if x.is_cuda:
        from shoal.kernels.rms_norm import triton_impl

        return triton_impl.rms_norm(x, weight, eps)
    return _run_native(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds x to `residual` in place, then returns rms_norm(residual, weight, eps) as a new tensor.

    x, residual: [rows, hidden] contiguous, of one dtype. The sum is rounded to that dtype before it is normalised.
    """
    _check(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype or not residual.is_contiguous():
        raise ValueError(f"residual must be a contiguous {x.dtype} of shape {tuple(x.shape)}")
    if x.is_cuda:
        from shoal.kernels.rms_norm import triton_impl

        return triton_impl.add_rms_norm(x, residual, weight, eps)
    return _run_native(x, residual, weight, eps)


def _run_native(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    native = library()
    code, weight_code = DTYPE_CODES.get(x.dtype), DTYPE_CODES.get(weight.dtype)
    if native is None or code is None or weight_code is None:
        if residual is None:
            return reference.rms_norm(x, weight, eps)
        return reference.add_rms_norm(x, residual, weight, eps)
    out = torch.empty_like(x)
    rows, hidden = x.shape
    native.rms_norm(
        x.data_ptr(),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        hidden,
        eps,
        code,
        weight_code,
        torch.get_num_threads(),
    )
    return out


def _check(x: Tensor, weight: Tensor) -> None:
    if x.dim() != 2 or not x.is_contiguous():
        raise ValueError(f"x must be contiguous [rows, hidden], not {tuple(x.shape)}")
    if weight.shape != x.shape[1:] or weight.dtype not in (x.dtype, torch.float32) or not weight.is_contiguous():
        raise ValueError(f"weight must be a contiguous {x.dtype} or torch.float32 of shape ({x.shape[1]},)")
