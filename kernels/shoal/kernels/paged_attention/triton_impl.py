"""Paged attention on a GPU: flash attention (Dao 2023) over pages, split over KV where there are few tiles.

A tile is up to M rows of one KV head: query tokens times the query heads that share it, so that a page is read once for
all of them, in decoding and in prefill alike. A page of one KV head is one TMA tile. Where a step has fewer tiles than
the chip has places, a tile's KV is split (flash-decoding). In decoding the program of a tile that finishes last merges
the parts; tall tiles are merged by a launch of its own, which in the last program alone would take as long as all.

Measured on an H100 (32 query and 8 KV heads of 128, pages of 64): decoding 128 x 1k 2,950 GB/s, 32 x 8k 3,040 GB/s of
the 3,075 that a plain read reaches; causal prefill of 8k 510 TFLOP/s.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.paged_attention import gluon_tall
from shoal.kernels.paged_attention.gpu_plan import DecodeLaunch, PiecesLaunch
from shoal.kernels.paged_attention.options import AttentionOptions
from shoal.kernels.paged_attention.plan import AttentionPlan
from shoal.kernels.paged_attention.triton_tile import (
    load_queries,
    merge_rows,
    store_part,
    store_rows,
    visit_pages,
    visit_pages_of_one_token,
)
from shoal.kernels.triton_overlap import await_previous, launch_options

_LOG2_E = 1.4426950408889634
_MERGE_ROWS = 8


def paged_attention(qkv: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
    """See `shoal.kernels.paged_attention.paged_attention`; for a plan made by `gpu_plan`."""
    shape = plan.shape
    out = qkv.new_empty((qkv.shape[0], shape.num_heads * shape.layout.head_dim))
    for launch in plan.launches:
        if isinstance(launch, DecodeLaunch):
            _launch_decode(qkv, out, layer_cache, plan, options, launch)
        else:
            _launch_pieces(qkv, out, layer_cache, plan, options, launch)
    return out


def _launch_decode(
    qkv: Tensor, out: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions, launch: DecodeLaunch
) -> None:
    sizes = _sizes(plan, options, launch.tiling.rows)
    _decode[launch.num_splits, plan.shape.layout.num_kv_heads, launch.num_sequences](
        *_step_arguments(qkv, out, layer_cache, plan, options, launch),
        layer_cache,
        launch.finished,
        *_strides(qkv, out, layer_cache, plan, options),
        **sizes,
        HAS_SOFT_CAP=options.soft_cap is not None,
        # Eight parts of these rows are in registers at once: 128 of a thread's, more would spill.
        MERGE_ROWS=min(triton.next_power_of_2(sizes["GROUP"]), 512 * launch.tiling.num_warps // sizes["DIM"]),
        SPLITS=launch.num_splits,
        STAGES=launch.tiling.num_stages,
        num_warps=launch.tiling.num_warps,
        **launch_options(qkv.device),
    )


def _launch_pieces(
    qkv: Tensor, out: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions, launch: PiecesLaunch
) -> None:
    num_kv_heads, tiling = plan.shape.layout.num_kv_heads, launch.tiling
    sizes = _sizes(plan, options, tiling.rows)
    if gluon_tall.supports(qkv, plan, options, launch):
        gluon_tall.launch_tall(qkv, out, layer_cache, plan, options, launch)
    else:
        # Neighbours share KV heads: their pages are in the second-level cache.
        _attend[num_kv_heads, launch.items.shape[0]](
            *_step_arguments(qkv, out, layer_cache, plan, options, launch),
            launch.items,
            *_strides(qkv, out, layer_cache, plan, options),
            **sizes,
            HAS_SOFT_CAP=options.soft_cap is not None,
            STAGES=tiling.num_stages,
            num_warps=tiling.num_warps,
        )
    if launch.merges.shape[0]:
        _merge[tiling.rows // _MERGE_ROWS, num_kv_heads, launch.merges.shape[0]](
            out,
            plan.query_starts,
            launch.merges,
            options.sinks,
            launch.part_values,
            launch.part_statistics,
            out.stride(0),
            **{name: sizes[name] for name in ("NUM_KV_HEADS", "GROUP", "HEAD_DIM", "DIM", "M", "HAS_SINKS")},
            ROWS=_MERGE_ROWS,
        )


def _sizes(plan: AttentionPlan, options: AttentionOptions, tile_rows: int) -> dict[str, int]:
    layout = plan.shape.layout
    return {
        "NUM_KV_HEADS": layout.num_kv_heads,
        "GROUP": plan.shape.num_heads // layout.num_kv_heads,
        "HEAD_DIM": layout.head_dim,
        "DIM": triton.next_power_of_2(layout.head_dim),
        "PAGE": layout.block_size,
        "M": tile_rows,
        "HAS_WINDOW": options.sliding_window is not None,
        "HAS_SINKS": options.sinks is not None,
    }


def _step_arguments(
    qkv: Tensor,
    out: Tensor,
    layer_cache: Tensor,
    plan: AttentionPlan,
    options: AttentionOptions,
    launch: DecodeLaunch | PiecesLaunch,
) -> tuple[object, ...]:
    return (
        qkv,
        out,
        launch.tiling.pages,
        plan.block_tables,
        plan.table_rows,
        plan.seq_lens,
        plan.query_starts,
        options.sinks,
        launch.part_values,
        launch.part_statistics,
    )


def _strides(
    qkv: Tensor, out: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions
) -> tuple[object, ...]:
    head_dim = plan.shape.layout.head_dim
    return (
        qkv.stride(0),
        out.stride(0),
        plan.block_tables.stride(0),
        layer_cache.stride(0) // head_dim,
        layer_cache.storage_offset() // head_dim,
        (options.soft_cap or options.scale) * _LOG2_E,
        2 * options.scale / (options.soft_cap or 1.0) * _LOG2_E,
        options.sliding_window or 0,
    )


@triton.jit
def _decode(
    q_ptr,
    out_ptr,
    pages,
    tables,
    table_rows,
    seq_lens,
    query_starts,
    sinks,
    part_values,
    part_statistics,
    cache,
    finished,
    q_stride,
    out_stride,
    table_stride,
    rows_per_block,
    first_row,
    scale,
    tanh_scale,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    M: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    """One of SPLITS parts of a sequence with one query token; the last program of the tile to finish merges them."""
    split, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq_len = tl.load(seq_lens + seq)
    start = tl.load(query_starts + seq)
    first_page = 0
    if HAS_WINDOW:
        first_page = tl.maximum(seq_len - window, 0) // PAGE
    end_page = (seq_len + PAGE - 1) // PAGE
    per_split = tl.maximum((end_page - first_page + SPLITS - 1) // SPLITS, 1)
    begin = first_page + split * per_split
    end = tl.minimum(begin + per_split, end_page)
    await_previous(OVERLAPS)
    if begin >= end:
        return

    q = load_queries(q_ptr, q_stride, start, 0, 1, kv_head, GROUP, HEAD_DIM, DIM, M)
    table = tables + tl.load(table_rows + seq).to(tl.int64) * table_stride
    values, highest, total = visit_pages_of_one_token(
        q, pages, cache, table, begin, end, kv_head, first_row, rows_per_block, seq_len, scale, tanh_scale, window,
        NUM_KV_HEADS, HEAD_DIM, DIM, PAGE, M, HAS_WINDOW, HAS_SOFT_CAP, STAGES
    )  # fmt: skip
    if SPLITS == 1:
        store_rows(
            out_ptr, out_stride, sinks, values, highest, total, start, 0, 1, kv_head, GROUP, HEAD_DIM, DIM, M, HAS_SINKS
        )
    else:
        tile = (seq * NUM_KV_HEADS + kv_head).to(tl.int64)
        store_part(part_values, part_statistics, values, highest, total, (tile * SPLITS + split) * M, GROUP, DIM, M)
        tl.debug_barrier()  # every thread's part is stored before one of them says so
        num_parts = (end_page - first_page + per_split - 1) // per_split
        if tl.atomic_add(finished + tile, 1, sem="acq_rel") == num_parts - 1:
            tl.store(finished + tile, 0)
            for row in range(0, GROUP, MERGE_ROWS):
                merge_rows(
                    out_ptr, sinks, part_values, part_statistics, tile * SPLITS * M, row, num_parts, start, GROUP,
                    kv_head, out_stride, GROUP, HEAD_DIM, DIM, M, MERGE_ROWS, HAS_SINKS
                )  # fmt: skip


@triton.jit
def _attend(
    q_ptr,
    out_ptr,
    pages,
    tables,
    table_rows,
    seq_lens,
    query_starts,
    sinks,
    part_values,
    part_statistics,
    items,
    q_stride,
    out_stride,
    table_stride,
    rows_per_block,
    first_row,
    scale,
    tanh_scale,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    M: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One item of the step's work: a tile, or a part of one."""
    kv_head, item = tl.program_id(0), items + 5 * tl.program_id(1)
    seq = tl.load(item)
    if seq < 0:
        return
    first_token, begin, end, part = tl.load(item + 1), tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    seq_len = tl.load(seq_lens + seq)
    start = tl.load(query_starts + seq)
    num_queries = tl.load(query_starts + seq + 1) - start
    if HAS_WINDOW:  # what the window hides is skipped here, since the work is divided once for all layers
        begin = tl.maximum(begin, tl.maximum(seq_len - num_queries + first_token - window + 1, 0) // PAGE)

    q = load_queries(q_ptr, q_stride, start, first_token, num_queries, kv_head, GROUP, HEAD_DIM, DIM, M)
    table = tables + tl.load(table_rows + seq).to(tl.int64) * table_stride
    values, highest, total = visit_pages(
        q, pages, table, begin, end, kv_head, first_row, rows_per_block, seq_len, num_queries, first_token,
        scale, tanh_scale, window, NUM_KV_HEADS, GROUP, DIM, PAGE, M, HAS_WINDOW, HAS_SOFT_CAP, STAGES
    )  # fmt: skip
    if part < 0:
        store_rows(
            out_ptr, out_stride, sinks, values, highest, total, start, first_token, num_queries, kv_head,
            GROUP, HEAD_DIM, DIM, M, HAS_SINKS
        )  # fmt: skip
    else:
        num_rows = tl.minimum(num_queries - first_token, M // GROUP) * GROUP
        first = (part * NUM_KV_HEADS + kv_head).to(tl.int64) * M
        store_part(part_values, part_statistics, values, highest, total, first, num_rows, DIM, M)


@triton.jit
def _merge(
    out_ptr,
    query_starts,
    merges,
    sinks,
    part_values,
    part_statistics,
    out_stride,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    M: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS rows of a split tile."""
    first_row, kv_head, merge = tl.program_id(0) * ROWS, tl.program_id(1), merges + 4 * tl.program_id(2)
    seq = tl.load(merge)
    if seq < 0:
        return
    first_token, part, num_parts = tl.load(merge + 1), tl.load(merge + 2), tl.load(merge + 3)
    start = tl.load(query_starts + seq)
    num_rows = tl.minimum(tl.load(query_starts + seq + 1) - start - first_token, M // GROUP) * GROUP
    if first_row < num_rows:
        merge_rows(
            out_ptr, sinks, part_values, part_statistics, (part * NUM_KV_HEADS + kv_head).to(tl.int64) * M, first_row,
            num_parts, start + first_token, num_rows, kv_head, out_stride, GROUP, HEAD_DIM, DIM, NUM_KV_HEADS * M, ROWS,
            HAS_SINKS
        )  # fmt: skip
