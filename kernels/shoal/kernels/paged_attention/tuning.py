"""How the GPU's attention kernels are built, by the shape of a model's attention."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from shoal.kernels.tuning import dtype_name, gpu_of, load_entries, require_positive, require_powers_of_two


@dataclass(frozen=True, slots=True)
class AttentionTuning:
    """For which models (the first three fields), and how their kernels are built. See `gpu_plan.Tiling`.

    low: for sequences with a few query tokens; tall: for the others. Rows of a tile are made at least as many as a KV
    head has query heads.
    """

    dtype: str | None
    """Of the cache; null: any."""
    max_group: int | None
    """Query heads of a KV head, at most; null: any number."""
    max_head_dim: int | None
    """Likewise."""
    low_programs_per_processor: int
    """That run at once: the pieces into which a step is divided are as many as fit on the device."""
    low_rows: int
    low_num_stages: int
    low_num_warps: int
    tall_programs_per_processor: int
    tall_min_pages: int
    """A part of a tall tile is not made smaller: writing and merging it costs as much as reading some pages."""
    tall_rows: int
    tall_num_stages: int
    tall_num_warps: int

    def __post_init__(self) -> None:
        require_powers_of_two(
            low_rows=self.low_rows,
            low_num_warps=self.low_num_warps,
            tall_rows=self.tall_rows,
            tall_num_warps=self.tall_num_warps,
        )
        require_positive(
            low_programs_per_processor=self.low_programs_per_processor,
            tall_programs_per_processor=self.tall_programs_per_processor,
            tall_min_pages=self.tall_min_pages,
            low_num_stages=self.low_num_stages,
            tall_num_stages=self.tall_num_stages,
        )
        if self.low_rows < 16 or self.tall_rows < 16:
            raise ValueError("low_rows and tall_rows must be at least 16: products need as many")


@functools.cache
def choose(device: torch.device, dtype: torch.dtype, group: int, head_dim: int) -> AttentionTuning:
    """The entry for a model whose KV heads have `group` query heads each."""
    for entry in load_entries("paged_attention", gpu_of(device), AttentionTuning):
        fits = group <= (entry.max_group or group) and head_dim <= (entry.max_head_dim or head_dim)
        if fits and entry.dtype in (dtype_name(dtype), None):
            return entry
    raise LookupError(f"no attention tuning for {dtype}, {group} query heads to a KV head and head dim {head_dim}")
