"""Products of a few rows with a weight on a GPU, at the speed at which the weight can be read.

One row: dot products without tensor cores, each program some rows of the weight in large pieces. Up to 32 rows: the
weight is the left operand, tile by tile through TMA, and the rows are the right one, which needs only 16 columns where
the left one would be padded to 64. Measured on an H100, microseconds, cuBLAS in brackets, weights not in the cache:

    rows  6144x4096    4096x4096    28672x4096   4096x14336   128256x4096
    1     18.3 (21.0)  13.0 (15.7)  75.8 (86.5)  40.4 (43.9)  333.7 (378.2)
    8     19.9 (21.3)  14.3 (16.0)  80.9 (86.5)  42.5 (44.2)  345.4 (378.8)
    32    20.6 (22.1)  14.7 (15.1)  83.4 (87.7)  43.4 (45.4)  358.8 (383.2)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

MAX_ROWS = 32
_TILE_OUT, _TILE_IN_BYTES = 64, 512
_PIECE = 2048


def supports(x: Tensor, weight: Tensor) -> bool:
    """Few rows, and rows of the weight that TMA can address."""
    return 0 < x.shape[0] <= MAX_ROWS and weight.shape[1] * weight.element_size() % 16 == 0


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out_float32: bool) -> Tensor:
    """See `shoal.kernels.linear.linear`; weight: [out, in], for what `supports` says."""
    (rows, width), features = x.shape, weight.shape[0]
    out = torch.empty((rows, features), dtype=torch.float32 if out_float32 else x.dtype, device=x.device)
    if rows == 1:
        piece = min(_PIECE, triton.next_power_of_2(width))
        per_program = max(2, 2 * _PIECE // piece)
        _multiply_vector[(triton.cdiv(features, per_program),)](
            x,
            weight,
            bias,
            out,
            features,
            width,
            OUT=per_program,
            PIECE=piece,
            IS_EVEN=features % per_program == 0 and width % piece == 0,
            HAS_BIAS=bias is not None,
            num_warps=8,
        )
        return out
    tile_in = _TILE_IN_BYTES // weight.element_size()
    tiles = TensorDescriptor.from_tensor(weight, [_TILE_OUT, tile_in])
    _multiply_rows[(triton.cdiv(features, _TILE_OUT),)](
        x,
        tiles,
        bias,
        out,
        rows,
        features,
        width,
        ROWS=max(16, triton.next_power_of_2(rows)),
        OUT=_TILE_OUT,
        IN=tile_in,
        HAS_BIAS=bias is not None,
        num_warps=4,
    )
    return out


@triton.jit
def _multiply_vector(
    x_ptr, weight_ptr, bias_ptr, out_ptr, features, width, OUT: tl.constexpr, PIECE: tl.constexpr,
    IS_EVEN: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    feature, at = tl.program_id(0) * OUT + tl.arange(0, OUT), tl.arange(0, PIECE)
    exists = feature < features
    weight_rows = weight_ptr + feature.to(tl.int64)[:, None] * width
    total = tl.zeros([OUT, PIECE], tl.float32)
    for first in range(0, width, PIECE):
        if IS_EVEN:  # without masks: 5.83 ms a token of an 8B model instead of 6.07
            x = tl.load(x_ptr + first + at)
            weight = tl.load(weight_rows + (first + at)[None, :])
        else:
            inside = first + at < width
            x = tl.load(x_ptr + first + at, mask=inside, other=0.0)
            weight = tl.load(weight_rows + (first + at)[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
        total += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if HAS_BIAS:
        result += tl.load(bias_ptr + feature, mask=exists, other=0.0).to(tl.float32)
    tl.store(out_ptr + feature, result.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _multiply_rows(
    x_ptr, weight_tiles, bias_ptr, out_ptr, rows, features, width, ROWS: tl.constexpr, OUT: tl.constexpr,
    IN: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    first_feature = tl.program_id(0) * OUT
    feature, row, at = first_feature + tl.arange(0, OUT), tl.arange(0, ROWS), tl.arange(0, IN)
    total = tl.zeros([OUT, ROWS], tl.float32)
    for first in tl.range(0, width, IN, num_stages=4):
        weight = weight_tiles.load([first_feature, first])
        inside = (row < rows)[None, :] & (first + at < width)[:, None]
        x = tl.load(x_ptr + row[None, :] * width + (first + at)[:, None], mask=inside, other=0.0)
        total = tl.dot(weight, x, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + feature, mask=feature < features, other=0.0).to(tl.float32)[:, None]
    exists = (row < rows)[None, :] & (feature < features)[:, None]
    out_at = row.to(tl.int64)[None, :] * features + feature[:, None]
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=exists)
