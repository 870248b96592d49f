"""The gate of a SwiGLU feed-forward (Shazeer 2020): silu of one half of each row times the other half."""

from __future__ import annotations

from torch import Tensor, get_num_threads

from shoal.kernels.native import DTYPE_CODES, library
from shoal.kernels.silu_and_mul import reference

__all__ = ["silu_and_mul"]


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up in float32, rounded once.

    gate_up: [rows, 2 * width] contiguous, gate in the first half. Returns [rows, width].
    """
    if gate_up.dim() != 2 or not gate_up.is_contiguous() or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be contiguous [rows, 2 * width], not {tuple(gate_up.shape)}")
    if gate_up.is_cuda:
        from shoal.kernels.silu_and_mul import triton_impl

        return triton_impl.silu_and_mul(gate_up)
    native = library()
    code = DTYPE_CODES.get(gate_up.dtype)
    if native is None or code is None:
        return reference.silu_and_mul(gate_up)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    native.silu_and_mul(gate_up.data_ptr(), out.data_ptr(), rows, width, code, get_num_threads())
    return out
