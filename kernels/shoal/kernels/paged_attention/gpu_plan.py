"""A step's attention on a GPU: what each launch of the kernels works on, and the scratch it needs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.kernels.paged_attention import tuning
from shoal.kernels.paged_attention.plan import AttentionPlan, AttentionShape
from shoal.kernels.paged_attention.work import Work, divide

_LOW_MIN_PAGES = 2
"""As `AttentionTuning.tall_min_pages`: of a few rows, parts are small."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel is built."""

    rows: int
    """Of a tile: query tokens times the query heads of a KV head."""
    num_stages: int
    num_warps: int
    pages: Any
    """The cache as a TMA descriptor (triton's TensorDescriptor) whose tiles are one page of one KV head."""


@dataclass(frozen=True, slots=True)
class DecodeLaunch:
    """One query token a sequence, each sequence's KV split into the same number of parts. Owns its scratch."""

    tiling: Tiling
    num_sequences: int
    num_splits: int
    part_values: Tensor
    part_statistics: Tensor
    finished: Tensor
    """[num_sequences * num_kv_heads] int32 zeros, between launches."""


@dataclass(frozen=True, slots=True)
class PiecesLaunch:
    """Tiles of some sequences, split where that makes the pieces alike; see `work`. Owns its scratch."""

    tiling: Tiling
    items: Tensor
    """[n, 5] as `Work.items`; rows with a negative sequence are skipped."""
    merges: Tensor
    """[m, 4] as `Work.merges`, likewise."""
    part_values: Tensor
    part_statistics: Tensor


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step's work on the host. Sequences with few query tokens and those with many have tiles of their own height."""

    low: Work
    tall: Work


def describe_pages(cache: Tensor, shape: AttentionShape) -> Any:
    """The TMA descriptor of a whole `RowsLayout` cache, to be made once."""
    import triton
    from triton.tools.tensor_descriptor import TensorDescriptor

    layout = shape.layout
    rows = cache.view(-1, layout.head_dim)
    if rows.shape[0] >= 2**31:
        raise ValueError(f"a cache of {rows.shape[0]} rows of {layout.head_dim} is too large: their numbers are int32")
    return TensorDescriptor.from_tensor(rows, [layout.block_size, triton.next_power_of_2(layout.head_dim)])


def plan_decode(
    shape: AttentionShape, pages: Any, query_starts: Tensor, seq_lens: Tensor, block_tables: Tensor, table_rows: Tensor
) -> AttentionPlan:
    """A step in which every sequence has one query token. All tensors are on the device; nothing is read back.

    The plan depends on the number of sequences alone, so that a CUDA graph captured with it serves any lengths; a
    sequence of length 0 is skipped.
    """
    num_sequences, device = seq_lens.shape[0], seq_lens.device
    num_programs = num_sequences * shape.layout.num_kv_heads
    num_splits = max(1, _tuning(shape).low_programs_per_processor * num_processors(device) // num_programs)
    tiling = low_tiling(shape, pages)
    num_rows = num_programs * num_splits * tiling.rows if num_splits > 1 else 0
    launch = DecodeLaunch(
        tiling,
        num_sequences,
        num_splits,
        *_scratch(shape, num_rows, device),
        finished=torch.zeros(num_programs, dtype=torch.int32, device=device),
    )
    return AttentionPlan(shape, query_starts, seq_lens, block_tables, table_rows, launches=(launch,))


def plan_mixed(
    shape: AttentionShape,
    pages: Any,
    query_starts: NDArray[np.int32],
    lengths: NDArray[np.int32],
    block_tables: Tensor,
    table_rows: Tensor,
) -> AttentionPlan:
    """Any step. query_starts [S + 1] and lengths [S] are on the host, the rest on the device."""
    device = block_tables.device
    work = divide_step(shape, query_starts, lengths, device)

    def put(array: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(device)

    launches = tuple(
        launch_pieces(shape, tiling, put(part.items), put(part.merges), part.num_parts)
        for tiling, part in ((low_tiling(shape, pages), work.low), (tall_tiling(shape, pages), work.tall))
        if len(part.items)
    )
    return AttentionPlan(shape, put(query_starts), put(lengths), block_tables, table_rows, launches=launches)


def divide_step(
    shape: AttentionShape, query_starts: NDArray[np.int32], lengths: NDArray[np.int32], device: torch.device
) -> StepWork:
    """The work of any step."""
    query_counts = np.diff(query_starts)
    is_low = query_counts <= max_low_queries(shape)

    def work(members: NDArray[np.bool_], tile_rows: int, num_places: int, min_pages: int) -> Work:
        return divide(
            np.flatnonzero(members).astype(np.int32),
            query_counts,
            lengths,
            tile_tokens=tile_rows // _group(shape),
            page_size=shape.layout.block_size,
            num_places=num_places,
            min_pages=min_pages,
        )

    return StepWork(
        work(is_low, _low_rows(shape), low_places(shape, device), _LOW_MIN_PAGES),
        work(~is_low, _tall_rows(shape), tall_places(shape, device), _tuning(shape).tall_min_pages),
    )


def launch_pieces(shape: AttentionShape, tiling: Tiling, items: Tensor, merges: Tensor, num_parts: int) -> PiecesLaunch:
    """A launch over work that is on the device; num_parts: as many as it may ever have."""
    num_rows = num_parts * shape.layout.num_kv_heads * tiling.rows
    return PiecesLaunch(tiling, items, merges, *_scratch(shape, num_rows, items.device))


def low_tiling(shape: AttentionShape, pages: Any) -> Tiling:
    """For sequences with up to `max_low_queries` query tokens."""
    tuned = _tuning(shape)
    return Tiling(_low_rows(shape), num_stages=tuned.low_num_stages, num_warps=tuned.low_num_warps, pages=pages)


def tall_tiling(shape: AttentionShape, pages: Any) -> Tiling:
    """For the others.

    Their accumulators lie in registers: 128 x 256 over 4 warps would spill 2.6 KB a thread, over 8 nothing (sm_90).
    """
    tuned = _tuning(shape)
    return Tiling(_tall_rows(shape), num_stages=tuned.tall_num_stages, num_warps=tuned.tall_num_warps, pages=pages)


def max_low_queries(shape: AttentionShape) -> int:
    """Query tokens of a sequence that still are low work."""
    return _low_rows(shape) // _group(shape)


def low_places(shape: AttentionShape, device: torch.device) -> int:
    """Pieces of low work of each KV head that the device computes at once.

    `work.divide` then makes at most so many items more than there are tiles, so many merges, and twice so many parts.
    """
    return max(1, _tuning(shape).low_programs_per_processor * num_processors(device) // shape.layout.num_kv_heads)


def tall_places(shape: AttentionShape, device: torch.device) -> int:
    """The same of tall work."""
    return max(1, _tuning(shape).tall_programs_per_processor * num_processors(device) // shape.layout.num_kv_heads)


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors; 4 where kernels are interpreted, so that small tests split."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@functools.cache
def _tuning(shape: AttentionShape) -> tuning.AttentionTuning:
    """Of the current CUDA device, on which a `RowsLayout` has its cache, or of none."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return tuning.choose(device, shape.layout.dtype, _group(shape), shape.layout.head_dim)


def _group(shape: AttentionShape) -> int:
    return shape.num_heads // shape.layout.num_kv_heads


def _padded_dim(shape: AttentionShape) -> int:
    return 1 << (shape.layout.head_dim - 1).bit_length()


def _low_rows(shape: AttentionShape) -> int:
    return max(_tuning(shape).low_rows, 1 << (_group(shape) - 1).bit_length())


def _tall_rows(shape: AttentionShape) -> int:
    return max(_tuning(shape).tall_rows, _low_rows(shape))


def _scratch(shape: AttentionShape, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values and statistics of rows of parts."""
    values = torch.empty((num_rows, _padded_dim(shape)), dtype=torch.float32, device=device)
    return values, torch.empty((num_rows, 2), dtype=torch.float32, device=device)
