"""A step's attention on a GPU: which tiles there are, how large they are, and into how many parts each is split."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels.paged_attention.plan import AttentionPlan, AttentionShape

MERGE_ROWS = 8
"""Rows of a tall tile that one program merges."""
_TALL = 128
_LOW = 16


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of the kernel over some of a step's sequences. Owns its scratch."""

    tiles: Tensor | None
    """[num_tiles, 2] int32: sequence, first query token; None: tile i is all of sequence i."""
    num_tiles: int
    tile_rows: int
    """Rows of a tile: query tokens times the query heads of a KV head."""
    num_splits: int
    num_stages: int
    num_warps: int
    pages: Any
    """The cache as a TMA descriptor (triton's TensorDescriptor) whose tiles are one page of one KV head."""
    part_values: Tensor
    part_statistics: Tensor
    finished: Tensor
    """[num_tiles * num_kv_heads] int32 zeros, between launches."""

    @property
    def merges_apart(self) -> bool:
        """Whether the parts are merged by a second launch rather than by the last program."""
        return self.num_splits > 1 and self.tile_rows > 2 * _LOW


def describe_pages(cache: Tensor, shape: AttentionShape) -> Any:
    """The TMA descriptor of a whole `RowsLayout` cache, to be made once."""
    import triton
    from triton.tools.tensor_descriptor import TensorDescriptor

    layout = shape.layout
    rows = cache.view(-1, layout.head_dim)
    return TensorDescriptor.from_tensor(rows, [layout.block_size, triton.next_power_of_2(layout.head_dim)])


def plan_decode(
    shape: AttentionShape, pages: Any, query_starts: Tensor, seq_lens: Tensor, block_tables: Tensor, table_rows: Tensor
) -> AttentionPlan:
    """A step in which every sequence has one query token. All tensors are on the device; nothing is read back.

    The plan depends on the number of sequences alone, so that a CUDA graph captured with it serves any lengths; a
    sequence of length 0 is skipped.
    """
    launch = _make_launch(shape, pages, None, seq_lens.shape[0], _rows_for(shape, 1), seq_lens.device)
    return AttentionPlan(shape, query_starts, seq_lens, block_tables, table_rows, launches=(launch,))


def plan_mixed(
    shape: AttentionShape,
    pages: Any,
    query_starts: NDArray[np.int32],
    lengths: NDArray[np.int32],
    block_tables: Tensor,
    table_rows: Tensor,
) -> AttentionPlan:
    """Any step. query_starts [S + 1] and lengths [S] are on the host, the rest on the device.

    Sequences with few query tokens and those with many get a launch each, with tiles of their size.
    """
    device, query_counts = block_tables.device, np.diff(query_starts)
    group = shape.num_heads // shape.layout.num_kv_heads
    is_low = query_counts * group <= max(_LOW, group)
    launches = []
    for members, tile_rows in ((np.flatnonzero(is_low), _rows_for(shape, 1)), (np.flatnonzero(~is_low), _TALL)):
        if len(members):
            tiles = _tiles_of(members, query_counts, lengths, tile_rows // group)
            on_device = torch.from_numpy(tiles).to(device, non_blocking=True)
            launches.append(_make_launch(shape, pages, on_device, len(tiles), tile_rows, device))
    both = torch.from_numpy(np.concatenate((query_starts, lengths))).to(device, non_blocking=True)
    starts, seq_lens = both[: len(query_starts)], both[len(query_starts) :]
    return AttentionPlan(shape, starts, seq_lens, block_tables, table_rows, launches=tuple(launches))


def _rows_for(shape: AttentionShape, num_queries: int) -> int:
    rows = num_queries * (shape.num_heads // shape.layout.num_kv_heads)
    return max(_LOW, 1 << (rows - 1).bit_length())


def _tiles_of(
    members: NDArray[np.intp], query_counts: NDArray[np.int32], lengths: NDArray[np.int32], step: int
) -> NDArray[np.int32]:
    """[n, 2]: sequence, first query token. Those that see the most KV first: the longest must not start last."""
    counts = query_counts[members]
    num_tiles = -(-counts // step)
    seq = np.repeat(members, num_tiles)
    first = (np.arange(num_tiles.sum()) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)) * step
    seen = lengths[seq] - query_counts[seq] + first
    order = np.argsort(-seen, kind="stable")
    return np.stack((seq, first), axis=1)[order].astype(np.int32)


def _make_launch(
    shape: AttentionShape, pages: Any, tiles: Tensor | None, num_tiles: int, tile_rows: int, device: torch.device
) -> Launch:
    layout = shape.layout
    num_programs = num_tiles * layout.num_kv_heads
    num_splits = max(1, 2 * _num_processors(device) // num_programs)
    is_tall = tile_rows > 2 * _LOW
    num_parts = num_programs * num_splits * tile_rows if num_splits > 1 else 0
    dim = 1 << (layout.head_dim - 1).bit_length()
    return Launch(
        tiles=tiles,
        num_tiles=num_tiles,
        tile_rows=tile_rows,
        num_splits=num_splits,
        num_stages=2 if is_tall else 3,
        num_warps=4 if is_tall else 2,
        pages=pages,
        part_values=torch.empty((num_parts, dim), dtype=torch.float32, device=device),
        part_statistics=torch.empty((num_parts, 2), dtype=torch.float32, device=device),
        finished=torch.zeros(num_programs, dtype=torch.int32, device=device),
    )


@functools.cache
def _num_processors(device: torch.device) -> int:
    """Streaming multiprocessors; 4 where kernels are interpreted, so that small tests split."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
