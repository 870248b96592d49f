"""The gate of a gated feed-forward (Shazeer 2020): an activation of one half of each row times the other half."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, get_num_threads

from shoal.kernels.act_and_mul import reference
from shoal.kernels.native import DTYPE_CODES, library

__all__ = ["Activation", "act_and_mul"]

Activation = Literal["silu", "gelu_tanh"]
"""SwiGLU, and GeGLU with the tanh approximation of GELU (Hendrycks and Gimpel 2016), as in Gemma."""

_CODES = {name: code for code, name in enumerate(get_args(Activation))}


def act_and_mul(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """activation(gate) * up in float32, rounded once.

    gate_up: [rows, 2 * width] contiguous, gate in the first half. Returns [rows, width].
    """
    if gate_up.dim() != 2 or not gate_up.is_contiguous() or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be contiguous [rows, 2 * width], not {tuple(gate_up.shape)}")
    if activation not in _CODES:
        raise ValueError(f"activation must be one of {', '.join(_CODES)}, not {activation!r}")
    if gate_up.is_cuda:
        from shoal.kernels.act_and_mul import triton_impl

        return triton_impl.act_and_mul(gate_up, activation)
    native = library()
    code = DTYPE_CODES.get(gate_up.dtype)
    if native is None or code is None:
        return reference.act_and_mul(gate_up, activation)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((rows, width))
    native.act_and_mul(gate_up.data_ptr(), out.data_ptr(), rows, width, _CODES[activation], code, get_num_threads())
    return out
