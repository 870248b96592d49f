"""Products with weights packed once: oneDNN's kernels for many rows, a native one for a few, on one copy."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.linear import reference, tuning
from shoal.kernels.native import DTYPE_CODES, library

__all__ = ["PackedWeight", "linear", "pack", "reference"]

_MAX_ROWS = 64
"""Above, oneDNN is as fast. Below, its call costs 9 us before it computes anything, and a model has four to a layer: a
decoding step of a 135M model on two Zen 5 cores took 7.9, 16.6 and 45.7 ms for 1, 16 and 64 rows with oneDNN, 4.8, 14.9
and 37.1 ms natively."""

_MAX_ROWS_BEYOND_CACHE = 12
_CACHED_BYTES = 512 * 1024
"""The native kernel reads a panel once for every six rows: it should stay in a core's second-level cache meanwhile."""

_PANEL = 64


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] in the layout that its products want; the original is not kept."""

    out_features: int
    in_features: int
    dtype: torch.dtype
    data: Tensor
    """oneDNN's opaque tensor, or the plain weight where oneDNN cannot take it."""
    is_packed: bool
    panels: int | None
    """Address of the packed elements if they are in the panels that the native kernel reads."""
    native_max_rows: int = 0
    """Up to how many rows the native kernel is the faster one."""
    counters: Tensor | None = None
    """On a GPU, where sums are split: [tiles] int32 zeros between products. So those of one weight share a stream."""


def pack(weight: Tensor) -> PackedWeight:
    """weight: [out, in] contiguous. Packed for oneDNN if it runs the dtype on this CPU, else kept as it is.

    Packed bfloat16 costs 9.5 and 24.9 ms for all the linears of a 135M model at 16 and 64 rows on two Zen 5 cores,
    unpacked 18.9 and 39.6 ms; float32 gains as much. oneDNN picks the same layout when told of 16 rows as when told
    nothing, and it is within 2% of the best at every size tried from 1 to 1024.
    """
    if weight.dim() != 2 or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [out, in], not {tuple(weight.shape)}")
    out_features, in_features = weight.shape
    if weight.is_cuda:
        return PackedWeight(
            out_features, in_features, weight.dtype, weight, False, None, counters=_allocate_counters(weight)
        )
    if not _can_pack(weight.device.type, weight.dtype):
        return PackedWeight(out_features, in_features, weight.dtype, weight, False, None)
    data = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    panels = None
    if library() is not None and in_features % (4 // weight.dtype.itemsize) == 0:
        panels = _address(data) if _is_in_panels(out_features, in_features, weight.dtype) else None
    fits = in_features * _PANEL * weight.dtype.itemsize <= _CACHED_BYTES
    max_rows = 0 if panels is None else _MAX_ROWS if fits else _MAX_ROWS_BEYOND_CACHE
    return PackedWeight(out_features, in_features, weight.dtype, data, True, panels, max_rows)


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, out_float32: bool = False) -> Tensor:
    """x weight^T + bias, summed in float32.

    x: [rows, in] contiguous, of the weight's dtype; bias: [out] of that dtype. Returns [rows, out] of that dtype, or
    float32. With out_float32 the sums are not rounded to bfloat16 on the way where the native kernel can run, which
    then takes any number of rows.
    """
    if x.dim() != 2 or x.shape[1] != weight.in_features or x.dtype != weight.dtype or not x.is_contiguous():
        raise ValueError(f"x must be contiguous {weight.dtype} [rows, {weight.in_features}], not {tuple(x.shape)}")
    rows = x.shape[0]
    if x.is_cuda:
        return _linear_on_gpu(x, weight, bias, out_float32=out_float32)
    native = library() if rows <= weight.native_max_rows or (out_float32 and weight.panels is not None) else None
    if native is not None:
        out = torch.empty((rows, weight.out_features), dtype=torch.float32 if out_float32 else x.dtype)
        native.linear(
            x.data_ptr(),
            weight.panels,
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            weight.in_features,
            weight.out_features,
            DTYPE_CODES[x.dtype],
            out_float32,
            torch.get_num_threads(),
        )
        return out
    if weight.is_packed:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight.data, bias, "none", [], "")
    else:
        product = torch.nn.functional.linear(x, weight.data, bias)
    return product.float() if out_float32 else product


def _linear_on_gpu(x: Tensor, weight: PackedWeight, bias: Tensor | None, *, out_float32: bool) -> Tensor:
    chosen = tuning.choose(x.device, x.dtype, weight.out_features, weight.in_features, x.shape[0])
    if chosen.kernel != "torch":
        from shoal.kernels.linear import triton_impl

        return triton_impl.linear(x, weight.data, bias, chosen, weight.counters, out_float32=out_float32)
    if not out_float32 or x.dtype == torch.float32:
        return torch.nn.functional.linear(x, weight.data, bias)
    # Not the product and then .float(), which would round the sums, and move three times as many bytes.
    product: Tensor = torch.mm(x, weight.data.t(), out_dtype=torch.float32)
    return product if bias is None else product.add_(bias)


def _allocate_counters(weight: Tensor) -> Tensor | None:
    entries = tuning.entries_for(weight.device, weight.dtype, *weight.shape)
    count = tuning.num_counters(entries, weight.shape[0])
    return torch.zeros(count, dtype=torch.int32, device=weight.device) if count else None


@functools.cache
def _can_pack(device: str, dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU run packed products of the dtype."""
    if device != "cpu" or not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@functools.cache
def _is_in_panels(out_features: int, in_features: int, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this size in the native kernel's panels: looked up in its memory.

    oneDNN promises no layout; another version or CPU may choose another, and is then used for any number of rows.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((out_features, in_features), generator=generator).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    expected = to_panels(weight)
    if torch.ops.mkldnn._nbytes(packed) != expected.nbytes:
        return False
    memory = (ctypes.c_char * expected.nbytes).from_address(_address(packed))
    return torch.equal(torch.frombuffer(memory, dtype=dtype), expected.flatten())


def to_panels(weight: Tensor) -> Tensor:
    """[out / 64, in / p, 64, p] with p elements to 32 bits; rows past the last are zeros."""
    pack_size = 4 // weight.dtype.itemsize
    padding = -weight.shape[0] % _PANEL
    padded = torch.nn.functional.pad(weight, (0, 0, 0, padding))
    shaped = padded.view(-1, _PANEL, weight.shape[1] // pack_size, pack_size)
    return shaped.transpose(1, 2).contiguous()


def _address(packed: Tensor) -> int:
    return int(torch.ops.mkldnn.data_ptr(packed))
