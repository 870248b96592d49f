"""Products of a few rows with a weight on a GPU, at the speed at which the weight can be read.

- `vector`, one row: dot products without tensor cores, each program some rows of the weight in large pieces.
- `rows`, up to 32: the weight is the left operand, tile by tile through TMA, and the rows are the right one, which
  needs only 16 columns where the left one would be padded to 64.
- `tiles`, more: x comes through TMA too, and where the result has fewer tiles than the chip has processors, several
  programs share the sum of one. Each leaves its part; the last to finish adds them, always in the same order.

`tuning` says which is used and with which tiles. `rows` and `vector` measured on an H100, microseconds, cuBLAS in
brackets, weights not in the cache:

    rows  6144x4096    4096x4096    28672x4096   4096x14336   128256x4096
    1     18.3 (21.0)  13.0 (15.7)  75.8 (86.5)  40.4 (43.9)  333.7 (378.2)
    8     19.9 (21.3)  14.3 (16.0)  80.9 (86.5)  42.5 (44.2)  345.4 (378.8)
    32    20.6 (22.1)  14.7 (15.1)  83.4 (87.7)  43.4 (45.4)  358.8 (383.2)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from shoal.kernels.linear.tuning import LinearTuning
from shoal.kernels.triton_overlap import await_previous, launch_options


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel and all that it is called with: to run it, or only to compile it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[object, ...]
    options: Mapping[str, object]

    def run(self) -> None:
        """Queues it on the current stream."""
        self.kernel[self.grid](*self.arguments, **self.options)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, tuning: LinearTuning, counters: Tensor | None, *, out_float32: bool
) -> Tensor:
    """See `shoal.kernels.linear.linear`; weight: [out, in], with rows of a multiple of 16 bytes.

    tuning: of one of our kernels, for as many rows as x has. counters: int32 zeros, one for each tile of the result if
    the tuning splits sums; zeros again afterwards, so launches that share them must not run at once.
    """
    dtype = torch.float32 if out_float32 else x.dtype
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    if x.shape[0]:
        prepare(x, weight, bias, out, tuning, counters).run()
    return out


def prepare(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, tuning: LinearTuning, counters: Tensor | None
) -> Launch:
    """The launch that writes x weight^T + bias to out."""
    if tuning.kernel == "vector":
        return _prepare_vector(x, weight, bias, out, tuning)
    if tuning.kernel == "rows":
        return _prepare_rows(x, weight, bias, out, tuning)
    return _prepare_tiles(x, weight, bias, out, tuning, counters)


def _prepare_vector(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, tuning: LinearTuning) -> Launch:
    features, width = weight.shape
    piece = min(tuning.tile_in, triton.next_power_of_2(width))
    per_program = tuning.tile_out * tuning.tile_in // piece
    options = {
        "OUT": per_program,
        "PIECE": piece,
        "IS_EVEN": features % per_program == 0 and width % piece == 0,
        "HAS_BIAS": bias is not None,
        "num_warps": tuning.num_warps,
        **launch_options(x.device),
    }
    grid = (triton.cdiv(features, per_program),)
    return Launch(_multiply_vector, grid, (x, weight, bias, out, features, width), options)


def _prepare_rows(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, tuning: LinearTuning) -> Launch:
    (rows, width), features = x.shape, weight.shape[0]
    options = {
        "ROWS": tuning.tile_rows,
        "OUT": tuning.tile_out,
        "IN": tuning.tile_in,
        "STAGES": tuning.num_stages,
        "HAS_BIAS": bias is not None,
        "num_warps": tuning.num_warps,
        **launch_options(x.device),
    }
    tiles = TensorDescriptor.from_tensor(weight, [tuning.tile_out, tuning.tile_in])
    grid = (triton.cdiv(features, tuning.tile_out),)
    return Launch(_multiply_rows, grid, (x, tiles, bias, out, rows, features, width), options)


def _prepare_tiles(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, tuning: LinearTuning, counters: Tensor | None
) -> Launch:
    (rows, width), features = x.shape, weight.shape[0]
    steps = triton.cdiv(width, tuning.tile_in)
    split_width = triton.cdiv(steps, tuning.splits) * tuning.tile_in
    grid = (
        triton.cdiv(rows, tuning.tile_rows),
        triton.cdiv(features, tuning.tile_out),
        triton.cdiv(width, split_width),
    )
    parts = None
    if tuning.splits > 1:
        tile_size = tuning.tile_out * tuning.tile_rows
        parts = torch.empty(grid[0] * grid[1] * grid[2] * tile_size, dtype=torch.float32, device=x.device)
        if counters is None or counters.shape[0] < grid[0] * grid[1]:
            raise ValueError(f"{grid[0] * grid[1]} counters are needed to split the sums of as many tiles")
    options = {
        "ROWS": tuning.tile_rows,
        "OUT": tuning.tile_out,
        "IN": tuning.tile_in,
        "STAGES": tuning.num_stages,
        "HAS_BIAS": bias is not None,
        "IS_SPLIT": tuning.splits > 1,
        "num_warps": tuning.num_warps,
        **launch_options(x.device),
    }
    x_tiles = TensorDescriptor.from_tensor(x, [tuning.tile_rows, tuning.tile_in])
    weight_tiles = TensorDescriptor.from_tensor(weight, [tuning.tile_out, tuning.tile_in])
    arguments = (x_tiles, weight_tiles, bias, out, parts, counters, rows, features, width, split_width)
    return Launch(_multiply_tiles, grid, arguments, options)


@triton.jit
def _multiply_vector(
    x_ptr, weight_ptr, bias_ptr, out_ptr, features, width, OUT: tl.constexpr, PIECE: tl.constexpr,
    IS_EVEN: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAPS: tl.constexpr
):  # fmt: skip
    feature, at = tl.program_id(0) * OUT + tl.arange(0, OUT), tl.arange(0, PIECE)
    exists = feature < features
    weight_rows = weight_ptr + feature.to(tl.int64)[:, None] * width
    total = tl.zeros([OUT, PIECE], tl.float32)
    await_previous(OVERLAPS)
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


# The number of rows is only compared with: a build for multiples of 16 beside the others would gain nothing.
@triton.jit(do_not_specialize=["rows"])
def _multiply_rows(
    x_ptr, weight_tiles, bias_ptr, out_ptr, rows, features, width, ROWS: tl.constexpr, OUT: tl.constexpr,
    IN: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr, OVERLAPS: tl.constexpr
):  # fmt: skip
    first_feature = tl.program_id(0) * OUT
    row, at = tl.arange(0, ROWS), tl.arange(0, IN)
    total = tl.zeros([OUT, ROWS], tl.float32)
    await_previous(OVERLAPS)
    for first in tl.range(0, width, IN, num_stages=STAGES):
        weight = weight_tiles.load([first_feature, first])
        inside = (row < rows)[None, :] & (first + at < width)[:, None]
        x = tl.load(x_ptr + row[None, :] * width + (first + at)[:, None], mask=inside, other=0.0)
        total = tl.dot(weight, x, total, input_precision="ieee")
    _store_tile(total, bias_ptr, out_ptr, first_feature, 0, rows, features, ROWS, OUT, HAS_BIAS)


@triton.jit(do_not_specialize=["rows", "split_width"])
def _multiply_tiles(
    x_tiles, weight_tiles, bias_ptr, out_ptr, parts, counters, rows, features, width, split_width,
    ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, STAGES: tl.constexpr, HAS_BIAS: tl.constexpr,
    IS_SPLIT: tl.constexpr, OVERLAPS: tl.constexpr
):  # fmt: skip
    # Tiles of rows are neighbours, so that they share the weight's tile in the second-level cache.
    first_row, first_feature, split = tl.program_id(0) * ROWS, tl.program_id(1) * OUT, tl.program_id(2)
    begin = split * split_width
    total = tl.zeros([OUT, ROWS], tl.float32)
    await_previous(OVERLAPS)
    for first in tl.range(begin, tl.minimum(begin + split_width, width), IN, num_stages=STAGES):
        weight = weight_tiles.load([first_feature, first])
        x = x_tiles.load([first_row, first])
        total = tl.dot(weight, x.T, total, input_precision="ieee")
    if IS_SPLIT:
        splits = tl.num_programs(2)
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        at = tl.arange(0, OUT)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        tile_parts = parts + tile.to(tl.int64) * splits * (OUT * ROWS)
        tl.store(tile_parts + split * (OUT * ROWS) + at, total)
        tl.debug_barrier()  # every thread's share is stored before one of them says so
        if tl.atomic_add(counters + tile, 1, sem="acq_rel") == splits - 1:
            tl.store(counters + tile, 0)
            total = tl.load(tile_parts + at)
            for part in range(1, splits):
                total += tl.load(tile_parts + part * (OUT * ROWS) + at)
            _store_tile(total, bias_ptr, out_ptr, first_feature, first_row, rows, features, ROWS, OUT, HAS_BIAS)
    else:
        _store_tile(total, bias_ptr, out_ptr, first_feature, first_row, rows, features, ROWS, OUT, HAS_BIAS)


@triton.jit
def _store_tile(
    total, bias_ptr, out_ptr, first_feature, first_row, rows, features, ROWS: tl.constexpr, OUT: tl.constexpr,
    HAS_BIAS: tl.constexpr
):  # fmt: skip
    """total: [OUT, ROWS] sums."""
    feature, row = first_feature + tl.arange(0, OUT), first_row + tl.arange(0, ROWS)
    if HAS_BIAS:
        total += tl.load(bias_ptr + feature, mask=feature < features, other=0.0).to(tl.float32)[:, None]
    exists = (row < rows)[None, :] & (feature < features)[:, None]
    out_at = row.to(tl.int64)[None, :] * features + feature[:, None]
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=exists)
