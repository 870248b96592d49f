"""Tall tiles on Hopper by `gluon_kernel`: where it can take them, and its launch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.kernels.paged_attention.gpu_plan import PiecesLaunch, num_processors
from shoal.kernels.paged_attention.options import AttentionOptions
from shoal.kernels.paged_attention.plan import AttentionPlan

_LOG2_E = 1.4426950408889634
_ROWS = 128
_PAGE = 64
_THREADS_REGISTERS = 168
"""Of each of 12 warps at the start: 64 K in all. The two groups that compute then take those of the third."""
_GROUP_REGISTERS = 240


@dataclass(frozen=True, slots=True)
class Build:
    """How the kernel is built."""

    keys: int = 128
    """Of a block: 64 or 128."""
    num_stages: int = 2
    """Blocks of keys in shared memory, and of values."""
    takes_turns: bool = False
    """Whether the two groups ask the tensor cores in turn."""
    is_persistent: bool = True
    """One program a processor, which fetches the next tile's pages while a tile ends; otherwise one a tile."""


DEFAULT_BUILD = Build()


def supports(qkv: Tensor, plan: AttentionPlan, options: AttentionOptions, launch: PiecesLaunch) -> bool:
    """Whether a launch can be given to `launch_tall`."""
    layout = plan.shape.layout
    is_plain = options.sliding_window is None and options.soft_cap is None and options.sinks is None
    return (
        is_plain
        and qkv.dtype == torch.bfloat16
        and layout.head_dim in (64, 128)
        and layout.block_size == _PAGE
        and launch.tiling.rows == _ROWS
        and _is_hopper(qkv.device)
    )


def launch_tall(
    qkv: Tensor,
    out: Tensor,
    layer_cache: Tensor,
    plan: AttentionPlan,
    options: AttentionOptions,
    launch: PiecesLaunch,
    build: Build = DEFAULT_BUILD,
) -> None:
    """Computes the items of a launch; split tiles are left to be merged."""
    from shoal.kernels.paged_attention.gluon_kernel import attend_tall

    layout = plan.shape.layout
    head_dim, num_tiles = layout.head_dim, launch.items.shape[0] * layout.num_kv_heads
    num_programs = min(num_processors(qkv.device), num_tiles) if build.is_persistent else num_tiles
    attend_tall[(num_programs,)](
        qkv,
        out,
        _boxes(launch.tiling.pages.base),
        plan.block_tables,
        plan.table_rows,
        plan.seq_lens,
        plan.query_starts,
        launch.part_values,
        launch.part_statistics,
        launch.items,
        num_tiles,
        qkv.stride(0),
        out.stride(0),
        plan.block_tables.stride(0),
        layer_cache.stride(0) // head_dim,
        layer_cache.storage_offset() // head_dim,
        options.scale * _LOG2_E,
        NUM_KV_HEADS=layout.num_kv_heads,
        GROUP=plan.shape.num_heads // layout.num_kv_heads,
        DIM=head_dim,
        M=_ROWS,
        KEYS=build.keys,
        STAGES=build.num_stages,
        TURNS=build.takes_turns,
        REGISTERS=_GROUP_REGISTERS,
        num_warps=4,
        maxnreg=_THREADS_REGISTERS,
    )


def _boxes(rows: Tensor) -> Any:
    """The cache as a TMA descriptor whose tiles are 64 dimensions of a page of one KV head."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor.from_tensor(rows, [_PAGE, 64], layout)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
