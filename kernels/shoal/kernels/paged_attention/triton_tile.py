"""What a program of the attention kernels does with one tile: load queries, add pages, store or merge.

Statistics of rows (largest score, sum of weights) are in powers of two, and `scale` turns scores into such. With a soft
cap the scores that it turns are the tanh of the products, and `tanh_scale` turns these into twice tanh's argument, in
powers of two again.
"""

from __future__ import annotations

import triton
import triton.language as tl

_TINY = tl.constexpr(1e-37)  # rows without a token divide by this rather than by zero


@triton.jit
def load_queries(
    q_ptr, q_stride, start, first_token, num_queries, kv_head,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """[M, DIM] queries of a tile: rows are tokens times the heads of the group."""
    row = tl.arange(0, M)
    token = first_token + row // GROUP
    exists = (row < M // GROUP * GROUP) & (token < num_queries)
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, DIM)
    is_value = exists[:, None] & (dim < HEAD_DIM)[None, :]
    at = (start + token).to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM + dim[None, :]
    return tl.load(q_ptr + at, mask=is_value, other=0.0)


@triton.jit
def visit_pages(
    q, pages, table, begin, end, kv_head, first_row, rows_per_block, seq_len, num_queries, first_token,
    scale, tanh_scale, window,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Values, maxima and sums of a tile's rows over pages [begin, end) of their sequence."""
    k_row = first_row + kv_head * PAGE
    v_row = k_row + NUM_KV_HEADS * PAGE
    position = seq_len - num_queries + first_token + tl.arange(0, M) // GROUP
    # Pages that every row sees whole need no mask; they come first, unless a window cuts the lower edge. The few others
    # are not pipelined: buffers of their own would leave room for one program fewer (442 instead of 515 TFLOP/s).
    whole_end = tl.minimum(tl.maximum((seq_len - num_queries + first_token + 1) // PAGE, begin), end)
    values, highest, total = _visit_whole(
        q, pages, table, begin, whole_end, k_row, v_row, rows_per_block, position,
        tl.minimum(seq_len, seq_len - num_queries + first_token + M // GROUP) - 1, scale, tanh_scale, seq_len, window,
        DIM, PAGE, M, HAS_WINDOW, HAS_SOFT_CAP, STAGES
    )  # fmt: skip
    return _visit(
        q, values, highest, total, pages, table, whole_end, end, k_row, v_row, rows_per_block, position,
        scale, tanh_scale, seq_len, window, True, HAS_WINDOW, HAS_SOFT_CAP, PAGE, 1
    )  # fmt: skip


@triton.jit
def visit_pages_of_one_token(
    q, pages, cache, table, begin, end, kv_head, first_row, rows_per_block, seq_len, scale, tanh_scale, window,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFT_CAP: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """`visit_pages` for the last token of a sequence. cache: the layer's, its blocks rows_per_block rows apart.

    Of a page that the sequence does not fill, only its tokens are read: TMA would read all of it, at 160 tokens a fifth
    more bytes. On an H100 that makes 256 sequences of 160 tokens 13% faster, of 290 8%.
    """
    k_row = first_row + kv_head * PAGE
    v_row = k_row + NUM_KV_HEADS * PAGE
    position = tl.zeros([M], tl.int32) + (seq_len - 1)
    whole_end = tl.minimum(seq_len // PAGE, end)
    values, highest, total = _visit_whole(
        q, pages, table, begin, whole_end, k_row, v_row, rows_per_block, position, seq_len - 1, scale, tanh_scale,
        seq_len, window, DIM, PAGE, M, HAS_WINDOW, HAS_SOFT_CAP, STAGES
    )  # fmt: skip
    if whole_end < end:
        offset, dim = tl.arange(0, PAGE), tl.arange(0, DIM)
        key = whole_end * PAGE + offset
        exists = key < seq_len
        if HAS_WINDOW:
            exists &= key > seq_len - 1 - window
        row = tl.load(table + whole_end).to(tl.int64) * rows_per_block + kv_head * PAGE + offset
        at = row[:, None] * HEAD_DIM + dim[None, :]
        is_value = exists[:, None] & (dim < HEAD_DIM)[None, :]
        k = tl.load(cache + at, mask=is_value, other=0.0)
        v = tl.load(cache + at + NUM_KV_HEADS * PAGE * HEAD_DIM, mask=is_value, other=0.0)
        scores = tl.where(exists[None, :], _score(q, k, tanh_scale, HAS_SOFT_CAP), float("-inf"))
        weights, decay, highest, total = _weigh(scores, highest, total, scale)
        values = tl.dot(weights.to(v.dtype), v, values * decay[:, None], input_precision="ieee")
    return values, highest, total


@triton.jit
def _visit_whole(
    q, pages, table, begin, end, k_row, v_row, rows_per_block, position, last_position, scale, tanh_scale, seq_len,
    window, DIM: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """The first values, maxima and sums: of pages [begin, end), which only a window may hide in part.

    last_position: of the tile's last row, whose window begins last.
    """
    values = tl.zeros([M, DIM], tl.float32)
    highest = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    whole_begin = begin
    if HAS_WINDOW:
        lowest_whole = tl.maximum(last_position - window + PAGE, 0) // PAGE
        whole_begin = tl.minimum(tl.maximum(lowest_whole, begin), end)
        values, highest, total = _visit(
            q, values, highest, total, pages, table, begin, whole_begin, k_row, v_row, rows_per_block, position,
            scale, tanh_scale, seq_len, window, True, True, HAS_SOFT_CAP, PAGE, 1
        )  # fmt: skip
    return _visit(
        q, values, highest, total, pages, table, whole_begin, end, k_row, v_row, rows_per_block, position,
        scale, tanh_scale, seq_len, window, False, False, HAS_SOFT_CAP, PAGE, STAGES
    )  # fmt: skip


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
        scores = _score(q, k, tanh_scale, HAS_SOFT_CAP)
        key = page * PAGE + offset
        if MASKED:
            visible = key[None, :] <= position[:, None]
            if WINDOWED:
                visible &= key[None, :] > position[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
        weights, decay, highest, total = _weigh(scores, highest, total, scale)
        v = pages.load([base + v_row, 0])
        if MASKED:
            v = tl.where((key < seq_len)[:, None], v, 0.0)  # 0 * NaN would reach the sum
        values = tl.dot(weights.to(v.dtype), v, values * decay[:, None], input_precision="ieee")
    return values, highest, total


@triton.jit
def _score(q, k, tanh_scale, HAS_SOFT_CAP: tl.constexpr):
    scores = tl.dot(q, k.T, input_precision="ieee")
    if HAS_SOFT_CAP:  # tanh(x) = 1 - 2 / (e^2x + 1), right at both infinities
        scores = 1.0 - 2.0 / (tl.math.exp2(scores * tanh_scale) + 1.0)
    return scores


@triton.jit
def _weigh(scores, highest, total, scale):
    """Weights of a page's keys; what the values so far are to be multiplied by; maxima and sums with the page."""
    highest_yet = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.math.exp2(scores * scale - highest_yet[:, None])
    decay = tl.math.exp2(highest - highest_yet)
    return weights, decay, highest_yet, total * decay + tl.sum(weights, 1)


@triton.jit
def store_rows(
    out_ptr, out_stride, sinks, values, highest, total, start, first_token, num_queries, kv_head,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, M: tl.constexpr, HAS_SINKS: tl.constexpr
):  # fmt: skip
    """The results of a whole tile."""
    row = tl.arange(0, M)
    token = first_token + row // GROUP
    exists = (row < M // GROUP * GROUP) & (token < num_queries)
    head = kv_head * GROUP + row % GROUP
    dim = tl.arange(0, DIM)
    if HAS_SINKS:
        values, total = _add_sinks(sinks, head, exists, values, highest, total)
    at = (start + token).to(tl.int64)[:, None] * out_stride + head[:, None] * HEAD_DIM + dim[None, :]
    result = (values / tl.maximum(total, _TINY)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, result, mask=exists[:, None] & (dim < HEAD_DIM)[None, :])


@triton.jit
def store_part(
    part_values, part_statistics, values, highest, total, first_row, num_rows, DIM: tl.constexpr, M: tl.constexpr
):
    """A part of a split tile, at rows `first_row` and after of the scratch."""
    row, dim = tl.arange(0, M), tl.arange(0, DIM)
    at = first_row + row
    exists = row < num_rows
    tl.store(part_values + at[:, None] * DIM + dim[None, :], values, mask=exists[:, None])
    tl.store(part_statistics + at * 2, highest, mask=exists)
    tl.store(part_statistics + at * 2 + 1, total, mask=exists)


@triton.jit
def _add_sinks(sinks, head, exists, values, highest, total):
    """Rows' values and sums once all their KV is in, relative to maxima that their sinks may raise."""
    sink = tl.load(sinks + head, mask=exists, other=0.0) * 1.4426950408889634
    highest_yet = tl.maximum(highest, sink)
    decay = tl.math.exp2(highest - highest_yet)
    return values * decay[:, None], total * decay + tl.math.exp2(sink - highest_yet)


@triton.jit
def merge_rows(
    out_ptr, sinks, part_values, part_statistics, first_part, first_row, num_parts, token, num_rows, kv_head,
    out_stride, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, PART_ROWS: tl.constexpr,
    ROWS: tl.constexpr, HAS_SINKS: tl.constexpr
):  # fmt: skip
    """Merges `ROWS` rows of a tile whose parts are PART_ROWS rows of the scratch apart.

    Eight parts at a time: one at a time costs 0.5 us of latency each.
    """
    row, part, dim = first_row + tl.arange(0, ROWS), tl.arange(0, 8), tl.arange(0, DIM)
    values = tl.zeros([ROWS, DIM], tl.float32)
    highest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, num_parts, 8):
        at = first_part + (first + part)[None, :] * PART_ROWS + row[:, None]
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
