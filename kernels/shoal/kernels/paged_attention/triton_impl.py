"""Paged attention on a GPU: flash attention (Dao 2023) over pages, split over KV where there are few tiles.

A tile is up to M rows of one KV head: query tokens times the query heads that share it, so that a page is read once for
all of them, in decoding and in prefill alike. A page of one KV head is one TMA tile. Where a step has fewer tiles than
the chip has places, a tile's KV is split (flash-decoding); the program that finishes last merges the parts.

Measured on an H100 (32 query and 8 KV heads of 128, pages of 64): decoding 128 x 1k 2,950 GB/s, 32 x 8k 3,040 GB/s of
the 3,075 that a plain read reaches; causal prefill of 8k 510 TFLOP/s.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.paged_attention.gpu_plan import MERGE_ROWS, Launch
from shoal.kernels.paged_attention.options import AttentionOptions
from shoal.kernels.paged_attention.plan import AttentionPlan

_LOG2_E = 1.4426950408889634
_TINY = tl.constexpr(1e-37)  # rows without a token divide by this rather than by zero


def paged_attention(qkv: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
    """See `shoal.kernels.paged_attention.paged_attention`; for a plan made by `gpu_plan`."""
    shape = plan.shape
    out = qkv.new_empty((qkv.shape[0], shape.num_heads * shape.layout.head_dim))
    for launch in plan.launches:
        _launch(qkv, out, layer_cache, plan, options, launch)
    return out


def _launch(
    qkv: Tensor, out: Tensor, layer_cache: Tensor, plan: AttentionPlan, options: AttentionOptions, launch: Launch
) -> None:
    shape, layout = plan.shape, plan.shape.layout
    soft_cap = options.soft_cap or 1.0
    num_kv_heads, group = layout.num_kv_heads, shape.num_heads // layout.num_kv_heads
    sizes = {
        "NUM_KV_HEADS": num_kv_heads,
        "GROUP": group,
        "HEAD_DIM": layout.head_dim,
        "DIM": triton.next_power_of_2(layout.head_dim),
        "PAGE": layout.block_size,
        "M": launch.tile_rows,
        "SPLITS": launch.num_splits,
        "HAS_TILES": launch.tiles is not None,
        "HAS_WINDOW": options.sliding_window is not None,
        "HAS_SINKS": options.sinks is not None,
    }
    grid = (launch.num_splits, num_kv_heads, launch.num_tiles)
    if launch.tiles is not None:  # neighbours share KV heads: their pages are in the second-level cache
        grid = (num_kv_heads, launch.num_tiles, launch.num_splits)
    _attend[grid](
        qkv,
        out,
        launch.pages,
        plan.block_tables,
        plan.table_rows,
        plan.seq_lens,
        plan.query_starts,
        launch.tiles,
        options.sinks,
        launch.part_values,
        launch.part_statistics,
        launch.finished,
        qkv.stride(0),
        out.stride(0),
        plan.block_tables.stride(0),
        layer_cache.stride(0) // layout.head_dim,
        layer_cache.storage_offset() // layout.head_dim,
        (options.soft_cap or options.scale) * _LOG2_E,
        2 * options.scale / soft_cap * _LOG2_E,
        options.sliding_window or 0,
        **sizes,
        HAS_SOFT_CAP=options.soft_cap is not None,
        GROUP_PADDED=triton.next_power_of_2(group),
        MERGES=not launch.merges_apart,
        STAGES=launch.num_stages,
        num_warps=launch.num_warps,
    )
    if launch.merges_apart:
        _merge[(launch.tile_rows // MERGE_ROWS, num_kv_heads, launch.num_tiles)](
            out,
            plan.seq_lens,
            plan.query_starts,
            launch.tiles,
            options.sinks,
            launch.part_values,
            launch.part_statistics,
            out.stride(0),
            options.sliding_window or 0,
            **sizes,
            ROWS=MERGE_ROWS,
        )


@triton.jit
def _attend(
    q_ptr,
    out_ptr,
    pages,
    tables,
    table_rows,
    seq_lens,
    query_starts,
    tiles,
    sinks,
    part_values,
    part_statistics,
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
    GROUP_PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_TILES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    MERGES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One split of one tile of one KV head. Statistics are in powers of two, and `scale` turns scores into such.

    With a soft cap the scores that it turns are the tanh of the products, and `tanh_scale` turns these into twice
    tanh's argument, again in powers of two.
    """
    if HAS_TILES:
        kv_head, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        seq = tl.load(tiles + 2 * tile)
        first_token = tl.load(tiles + 2 * tile + 1)
    else:
        split, kv_head, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        seq = tile
        first_token = 0
    seq_len = tl.load(seq_lens + seq)
    start = tl.load(query_starts + seq)
    num_queries = tl.load(query_starts + seq + 1) - start
    first_page, end_page, per_split, num_active = _extent(
        seq_len, num_queries, first_token, window, GROUP, PAGE, M, SPLITS, HAS_WINDOW
    )
    begin = first_page + split * per_split
    end = tl.minimum(begin + per_split, end_page)
    if begin >= end:
        return

    row = tl.arange(0, M)
    token = first_token + row // GROUP
    exists = (row < M // GROUP * GROUP) & (token < num_queries)
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, DIM)
    is_value = exists[:, None] & (dim < HEAD_DIM)[None, :]
    q_at = (start + token).to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM + dim[None, :]
    q = tl.load(q_ptr + q_at, mask=is_value, other=0.0)
    position = seq_len - num_queries + token

    table = tables + tl.load(table_rows + seq).to(tl.int64) * table_stride
    k_row = first_row + kv_head * PAGE
    v_row = k_row + NUM_KV_HEADS * PAGE
    values = tl.zeros([M, DIM], tl.float32)
    highest = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    # Pages that every row sees whole need no mask; they come first, unless a window cuts the lower edge. The few others
    # are not pipelined: buffers of their own would leave room for one program fewer (442 instead of 515 TFLOP/s).
    whole_end = tl.minimum(tl.maximum((seq_len - num_queries + first_token + 1) // PAGE, begin), end)
    whole_begin = begin
    if HAS_WINDOW:
        last_position = tl.minimum(seq_len, seq_len - num_queries + first_token + M // GROUP) - 1
        lowest_whole = tl.maximum(last_position - window + PAGE, 0) // PAGE
        whole_begin = tl.minimum(tl.maximum(lowest_whole, begin), whole_end)
        values, highest, total = _visit(
            q, values, highest, total, pages, table, begin, whole_begin, k_row, v_row, rows_per_block, position,
            scale, tanh_scale, seq_len, window, True, True, HAS_SOFT_CAP, PAGE, 1
        )  # fmt: skip
    values, highest, total = _visit(
        q, values, highest, total, pages, table, whole_begin, whole_end, k_row, v_row, rows_per_block, position,
        scale, tanh_scale, seq_len, window, False, False, HAS_SOFT_CAP, PAGE, STAGES
    )  # fmt: skip
    values, highest, total = _visit(
        q, values, highest, total, pages, table, whole_end, end, k_row, v_row, rows_per_block, position,
        scale, tanh_scale, seq_len, window, True, HAS_WINDOW, HAS_SOFT_CAP, PAGE, 1
    )  # fmt: skip

    if SPLITS == 1:
        if HAS_SINKS:
            values, total = _add_sinks(sinks, head, exists, values, highest, total)
        out_at = (start + token).to(tl.int64)[:, None] * out_stride + head[:, None] * HEAD_DIM + dim[None, :]
        tl.store(
            out_ptr + out_at, (values / tl.maximum(total, _TINY)[:, None]).to(out_ptr.dtype.element_ty), mask=is_value
        )
    else:
        slot = (tile * NUM_KV_HEADS + kv_head).to(tl.int64)
        part = (slot * SPLITS + split) * M + row
        tl.store(part_values + part[:, None] * DIM + dim[None, :], values, mask=exists[:, None])
        tl.store(part_statistics + part * 2, highest, mask=exists)
        tl.store(part_statistics + part * 2 + 1, total, mask=exists)
        if MERGES:
            tl.debug_barrier()  # every thread's part is stored before one of them says so
            if tl.atomic_add(finished + slot, 1, sem="acq_rel") == num_active - 1:
                tl.store(finished + slot, 0)
                num_rows = tl.minimum(num_queries - first_token, M // GROUP) * GROUP
                for first_row in range(0, num_rows, GROUP_PADDED):
                    _merge_rows(
                        out_ptr, sinks, part_values, part_statistics, slot * SPLITS * M, first_row, num_active,
                        start + first_token, num_rows, kv_head, out_stride, GROUP, HEAD_DIM, DIM, M, GROUP_PADDED,
                        HAS_SINKS
                    )  # fmt: skip


@triton.jit
def _extent(
    seq_len, num_queries, first_token, window, GROUP: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr,
    SPLITS: tl.constexpr, HAS_WINDOW: tl.constexpr
):  # fmt: skip
    """The pages a tile looks at, how many of them each split takes, and how many splits have any."""
    first_position = seq_len - num_queries + first_token
    end_page = (tl.minimum(seq_len, first_position + M // GROUP) + PAGE - 1) // PAGE
    first_page = 0
    if HAS_WINDOW:
        first_page = tl.maximum(first_position - window + 1, 0) // PAGE
    num_pages = end_page - first_page
    per_split = tl.maximum((num_pages + SPLITS - 1) // SPLITS, 1)
    return first_page, end_page, per_split, (num_pages + per_split - 1) // per_split


@triton.jit
def _visit(
    q, values, highest, total, pages, table, begin, end, k_row, v_row, rows_per_block, position,
    scale, tanh_scale, seq_len, window,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, PAGE: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Adds pages [begin, end) to the running softmax. Only masked pages may hold slots that are no token's."""
    offset = tl.arange(0, PAGE)
    for page in tl.range(begin, end, num_stages=STAGES):
        base = tl.load(table + page) * rows_per_block
        k = pages.load([base + k_row, 0])
        scores = tl.dot(q, k.T, input_precision="ieee")
        if HAS_SOFT_CAP:  # tanh(x) = 1 - 2 / (e^2x + 1), right at both infinities
            scores = 1.0 - 2.0 / (tl.math.exp2(scores * tanh_scale) + 1.0)
        key = page * PAGE + offset
        if MASKED:
            visible = key[None, :] <= position[:, None]
            if WINDOWED:
                visible &= key[None, :] > position[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
        highest_yet = tl.maximum(highest, tl.max(scores, 1) * scale)
        weights = tl.math.exp2(scores * scale - highest_yet[:, None])
        decay = tl.math.exp2(highest - highest_yet)
        total = total * decay + tl.sum(weights, 1)
        v = pages.load([base + v_row, 0])
        if MASKED:
            v = tl.where((key < seq_len)[:, None], v, 0.0)  # 0 * NaN would reach the sum
        values = tl.dot(weights.to(v.dtype), v, values * decay[:, None], input_precision="ieee")
        highest = highest_yet
    return values, highest, total


@triton.jit
def _add_sinks(sinks, head, exists, values, highest, total):
    """Rows' values and sums once all their KV is in, relative to maxima that their sinks may raise."""
    sink = tl.load(sinks + head, mask=exists, other=0.0) * 1.4426950408889634
    highest_yet = tl.maximum(highest, sink)
    decay = tl.math.exp2(highest - highest_yet)
    return values * decay[:, None], total * decay + tl.math.exp2(sink - highest_yet)


@triton.jit
def _merge_rows(
    out_ptr, sinks, part_values, part_statistics, first_part, first_row, num_parts, token, num_rows, kv_head,
    out_stride, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr,
    HAS_SINKS: tl.constexpr
):  # fmt: skip
    """Merges `ROWS` rows of a tile, eight parts at a time: one at a time costs 0.5 us of latency each."""
    row, part, dim = first_row + tl.arange(0, ROWS), tl.arange(0, 8), tl.arange(0, DIM)
    values = tl.zeros([ROWS, DIM], tl.float32)
    highest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, num_parts, 8):
        at = first_part + (first + part)[None, :] * M + row[:, None]
        exists = (first + part < num_parts)[None, :] & (row < num_rows)[:, None]
        part_highest = tl.load(part_statistics + at * 2, mask=exists, other=-1e30)
        part_total = tl.load(part_statistics + at * 2 + 1, mask=exists, other=0.0)
        part_value = tl.load(
            part_values + at[:, :, None] * DIM + dim[None, None, :], mask=exists[:, :, None], other=0.0
        )
        highest_yet = tl.maximum(highest, tl.max(part_highest, 1))
        weight = tl.math.exp2(part_highest - highest_yet[:, None])
        decay = tl.math.exp2(highest - highest_yet)
        values = values * decay[:, None] + tl.sum(part_value * weight[:, :, None], 1)
        total = total * decay + tl.sum(part_total * weight, 1)
        highest = highest_yet
    if HAS_SINKS:
        values, total = _add_sinks(sinks, kv_head * GROUP + row % GROUP, row < num_rows, values, highest, total)
    out_at = (token + row // GROUP).to(tl.int64)[:, None] * out_stride
    out_at += (kv_head * GROUP + row % GROUP)[:, None] * HEAD_DIM + dim[None, :]
    is_value = (row < num_rows)[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(out_ptr + out_at, (values / tl.maximum(total, _TINY)[:, None]).to(out_ptr.dtype.element_ty), mask=is_value)


@triton.jit
def _merge(
    out_ptr,
    seq_lens,
    query_starts,
    tiles,
    sinks,
    part_values,
    part_statistics,
    out_stride,
    window,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_TILES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Merges the parts of tall tiles in a launch of its own: in the last program alone it would take as long as all."""
    first_row, kv_head, tile = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2)
    if HAS_TILES:
        seq = tl.load(tiles + 2 * tile)
        first_token = tl.load(tiles + 2 * tile + 1)
    else:
        seq = tile
        first_token = 0
    start = tl.load(query_starts + seq)
    num_queries = tl.load(query_starts + seq + 1) - start
    num_rows = tl.minimum(num_queries - first_token, M // GROUP) * GROUP
    if first_row < num_rows:
        _, _, _, num_active = _extent(
            tl.load(seq_lens + seq), num_queries, first_token, window, GROUP, PAGE, M, SPLITS, HAS_WINDOW
        )
        slot = (tile * NUM_KV_HEADS + kv_head).to(tl.int64)
        _merge_rows(
            out_ptr, sinks, part_values, part_statistics, slot * SPLITS * M, first_row, num_active,
            start + first_token, num_rows, kv_head, out_stride, GROUP, HEAD_DIM, DIM, M, ROWS, HAS_SINKS
        )  # fmt: skip
