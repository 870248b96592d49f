"""Which kernel computes a product on a GPU, and with which tiles."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from shoal.kernels.tuning import dtype_name, gpu_of, load_entries, require_positive, require_powers_of_two

KERNELS = ("vector", "rows", "tiles", "torch")
MAX_TUNED_ROWS = 256
"""No entry is for more: such products are cuBLAS's."""


@dataclass(frozen=True, slots=True)
class LinearTuning:
    """For which products (the first four fields), and how `triton_impl` computes them."""

    dtype: str | None
    """Of x and the weight; null: any."""
    out_features: int | None
    """Of the weight that was measured; null: any. Other weights take what the nearest of those measured has."""
    in_features: int | None
    max_rows: int
    kernel: str
    """vector: one row, without tensor cores. rows: the weight through TMA, x through pointers. tiles: both through TMA,
    x in tiles too, and the sum over in_features split. torch: left to torch, the fields below mean nothing."""
    tile_out: int = 1
    tile_in: int = 1
    """In elements."""
    tile_rows: int = 16
    """vector: not used. rows: at least max_rows."""
    splits: int = 1
    """tiles only: programs that share one tile of the result."""
    num_stages: int = 1
    num_warps: int = 4

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {self.kernel!r}")
        if (self.out_features is None) != (self.in_features is None):
            raise ValueError("out_features and in_features must be null both or neither")
        require_positive(max_rows=self.max_rows, splits=self.splits, num_stages=self.num_stages)
        require_powers_of_two(
            tile_out=self.tile_out, tile_in=self.tile_in, tile_rows=self.tile_rows, num_warps=self.num_warps
        )
        limit = {"vector": 1, "rows": self.tile_rows}.get(self.kernel, MAX_TUNED_ROWS)
        if self.max_rows > limit:
            raise ValueError(f"max_rows must be at most {limit} for the kernel {self.kernel}, not {self.max_rows}")
        if self.splits > 1 and self.kernel != "tiles":
            raise ValueError(f"splits must be 1 for the kernel {self.kernel}, not {self.splits}")


def choose(device: torch.device, dtype: torch.dtype, out_features: int, in_features: int, rows: int) -> LinearTuning:
    """The entry for a product of `rows` rows; its kernel is `torch` where none of ours is for so many."""
    for entry in entries_for(device, dtype, out_features, in_features):
        if rows <= entry.max_rows:
            return entry
    return _LEFT_TO_TORCH


@functools.cache
def entries_for(
    device: torch.device, dtype: torch.dtype, out_features: int, in_features: int
) -> tuple[LinearTuning, ...]:
    """The entries for a weight, in the order of the documents: the first that is for enough rows is taken."""
    if in_features * dtype.itemsize % 16:  # TMA cannot address such rows
        return ()
    name = dtype_name(dtype)
    entries = [x for x in load_entries("linear", gpu_of(device), LinearTuning) if x.dtype in (name, None)]
    measured = {(x.out_features, x.in_features) for x in entries if x.out_features and x.in_features}
    nearest = min(measured, key=lambda size: (_distance(size, (out_features, in_features)), size), default=None)
    return tuple(x for x in entries if (x.out_features, x.in_features) == (nearest or (None, None)))


def num_counters(entries: tuple[LinearTuning, ...], out_features: int) -> int:
    """Tiles of results whose sums are split, at most, for any number of rows that `entries` are for."""
    tiles = (
        -(-out_features // entry.tile_out) * -(-entry.max_rows // entry.tile_rows)
        for entry in entries
        if entry.splits > 1
    )
    return max(tiles, default=0)


def _distance(size: tuple[int | None, int | None], wanted: tuple[int, int]) -> float:
    """Powers of two that lie between two weights' sizes."""
    return sum(abs(math.log2(one or 1) - math.log2(other)) for one, other in zip(size, wanted, strict=True))


_LEFT_TO_TORCH = LinearTuning(None, None, None, MAX_TUNED_ROWS, "torch")
