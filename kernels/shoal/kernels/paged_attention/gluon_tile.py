"""What a group of four warps of the Hopper kernel does with 64 rows of each tile; `gluon_kernel` has the rest.

All groups walk the same tiles and, within a tile, blocks of KEYS keys from the last to the first, so that the blocks
with a mask come first. Block number `count` of a program (over all its tiles) uses slot `count % STAGES` of the rings
of keys and of values; each slot has a barrier for "full" and one for "empty".

Products of a group run while it computes exponentials: the scores of a block are asked for before the weights of the
block before it are multiplied with their values, and only the scores are waited for. With TURNS the two groups also ask
in turn, so that one multiplies while the other computes exponentials.

A slot holds its block as boxes of [64 keys, 64 dimensions], which is how TMA writes them with 128-byte swizzling; the
boxes are in the order in which wgmma expects a tile [KEYS, DIM], so both see the same memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

BOX = gl.constexpr(64)
ROWS = gl.constexpr(64)  # of one group of four warps: the height of a wgmma
_TINY = gl.constexpr(1e-37)  # rows without a token divide by this rather than by zero


@gluon.jit
def tile_index(wave):
    """The program's tile of a wave: to and fro, since tiles are sorted by length, the longest first."""
    place = gl.program_id(0)
    if wave % 2 == 1:
        place = gl.num_programs(0) - 1 - place
    return wave * gl.num_programs(0) + place


@gluon.jit
def tile_of(work, index, NUM_KV_HEADS: gl.constexpr):
    """(sequence, first query token, first page, page after the last, part) of a tile; a negative sequence: skip it."""
    items, num_tiles = work[0], work[1]
    exists = index < num_tiles
    item = items + 5 * (index // NUM_KV_HEADS)
    seq = gl.load(item, mask=exists, other=-1)
    first_token = gl.load(item + 1, mask=exists, other=0)
    begin = gl.load(item + 2, mask=exists, other=0)
    end = gl.load(item + 3, mask=exists, other=0)
    part = gl.load(item + 4, mask=exists, other=-1)
    return seq, first_token, begin, end, part


@gluon.jit
def attend(
    work, q_ptr, out_ptr, seq_lens, query_starts, part_values, part_statistics, q_stride, out_stride, scale,
    q_tile, rings, barriers, FIRST: gl.constexpr, NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr,
    KEYS: gl.constexpr, STAGES: gl.constexpr, M: gl.constexpr, TURNS: gl.constexpr
):  # fmt: skip
    """Rows [FIRST, FIRST + 64) of every tile of the program."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    ROW_LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    keys, values = rings
    num_tiles = work[1]
    count = 0
    for wave in range(gl.cdiv(num_tiles, gl.num_programs(0))):
        index = tile_index(wave)
        kv_head = index % NUM_KV_HEADS
        seq, first_token, begin, end, part = tile_of(work, index, NUM_KV_HEADS)
        if seq >= 0:
            seq_len = gl.load(seq_lens + seq)
            start = gl.load(query_starts + seq)
            num_queries = gl.load(query_starts + seq + 1) - start
            _load_queries(
                q_ptr, q_tile, start, first_token, num_queries, kv_head, q_stride, FIRST, GROUP, DIM, M, ROW_LAYOUT
            )
            acc, highest, total, count = _attend_tile(
                q_tile, keys, values, barriers, count, begin, end, seq_len, seq_len - num_queries + first_token, scale,
                FIRST, GROUP, DIM, KEYS, STAGES, M, TURNS
            )  # fmt: skip
            if part < 0:
                _store_rows(
                    out_ptr, q_tile, acc, total, start, first_token, num_queries, kv_head, out_stride,
                    FIRST, GROUP, DIM, M, ROW_LAYOUT
                )  # fmt: skip
            else:
                num_rows = gl.minimum(num_queries - first_token, M // GROUP) * GROUP
                _store_part(
                    part_values, part_statistics, acc, highest, total,
                    (part * NUM_KV_HEADS + kv_head).to(gl.int64) * M, num_rows, FIRST, DIM, LAYOUT
                )  # fmt: skip


@gluon.jit
def _load_queries(
    q_ptr, q_tile, start, first_token, num_queries, kv_head, stride,
    FIRST: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr, M: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """A group's rows of a tile's queries, to shared memory."""
    at, is_value = _row_offsets(start, first_token, num_queries, kv_head, stride, FIRST, GROUP, DIM, M, LAYOUT)
    q_tile.store(gl.load(q_ptr + at, mask=is_value, other=0.0))
    fence_async_shared()


@gluon.jit
def _store_rows(
    out_ptr, q_tile, acc, total, start, first_token, num_queries, kv_head, stride,
    FIRST: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr, M: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """The results of a group's rows, through the memory of its queries, so that whole lines are written."""
    inverse = 1.0 / gl.maximum(total, _TINY)
    q_tile.store((acc * inverse[:, None]).to(out_ptr.dtype.element_ty))
    at, is_value = _row_offsets(start, first_token, num_queries, kv_head, stride, FIRST, GROUP, DIM, M, LAYOUT)
    gl.store(out_ptr + at, q_tile.load(LAYOUT), mask=is_value)


@gluon.jit
def _store_part(
    part_values, part_statistics, acc, highest, total, first_row, num_rows,
    FIRST: gl.constexpr, DIM: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """A group's rows of a part, as `triton_tile.store_part` lays them out."""
    row = FIRST + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, DIM, gl.SliceLayout(0, LAYOUT))
    at = first_row + row
    is_value = (row < num_rows)[:, None] & (dim >= 0)[None, :]
    gl.store(part_values + at[:, None] * DIM + dim[None, :], acc, mask=is_value)
    gl.store(part_statistics + at * 2, highest, mask=row < num_rows)
    gl.store(part_statistics + at * 2 + 1, total, mask=row < num_rows)


@gluon.jit
def _row_offsets(
    start, first_token, num_queries, kv_head, stride, FIRST: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr,
    M: gl.constexpr, LAYOUT: gl.constexpr
):  # fmt: skip
    """Where a group's rows are in the queries or the output, and which exist."""
    row = FIRST + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, DIM, gl.SliceLayout(0, LAYOUT))
    token = first_token + row // GROUP
    exists = (row < M // GROUP * GROUP) & (token < num_queries)
    head = kv_head * GROUP + row % GROUP
    at = (start + token).to(gl.int64)[:, None] * stride + head[:, None] * DIM + dim[None, :]
    return at, exists[:, None] & (dim >= 0)[None, :]


@gluon.jit
def _attend_tile(
    q, keys, values, barriers, count, begin, end, seq_len, first_position, scale,
    FIRST: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
    M: gl.constexpr, TURNS: gl.constexpr
):  # fmt: skip
    """Values, maxima and sums of a group's rows of one tile, and the number of the block after its blocks."""
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, VALUES, 2)
    SCORES_ROW: gl.constexpr = gl.SliceLayout(1, SCORES)
    VALUES_ROW: gl.constexpr = gl.SliceLayout(1, VALUES)
    PAGES: gl.constexpr = KEYS // BOX
    k_full, k_empty, v_full, v_empty, turns = barriers
    num_blocks = gl.cdiv(end - begin, PAGES)
    position = first_position + (FIRST + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))) // GROUP
    limit = gl.minimum(position + 1, end * BOX)
    block = num_blocks - 1
    slot, phase = count % STAGES, count // STAGES & 1
    if (begin + num_blocks * PAGES) * BOX > seq_len:
        mbarrier.wait(v_full.index(slot), phase)
        _clear_values(values.index(slot), seq_len - (begin + block * PAGES) * BOX, DIM, KEYS)

    mbarrier.wait(k_full.index(slot), phase)
    nothing = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    _await_turn(turns, count, FIRST, TURNS)
    pending = warpgroup_mma(q, keys.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
    _end_turn(turns, FIRST, TURNS)
    scores = warpgroup_mma_wait(0, [pending])
    mbarrier.arrive(k_empty.index(slot))
    scores = _hide(scores, (begin + block * PAGES) * BOX, limit, KEYS, SCORES)
    highest = gl.maximum(gl.max(scores, 1) * scale, -1e30)
    weights = gl.exp2(scores * scale - highest[:, None])
    total = gl.sum(weights, 1)
    weights = gl.convert_layout(weights.to(gl.bfloat16), WEIGHTS)
    acc = gl.zeros([ROWS, DIM], gl.float32, VALUES)
    decay = gl.full([ROWS], 1.0, gl.float32, SCORES_ROW)
    count += 1
    mbarrier.wait(k_full.index(count % STAGES), count // STAGES & 1, pred=block > 0)

    # Blocks below hold only keys that every row of the tile sees.
    num_whole = gl.minimum(gl.maximum((first_position + 1) // BOX - begin, 0) // PAGES, block)
    for i in range(block - num_whole):
        left = block - 1 - i
        acc, weights, highest, total, decay = _add_block(
            q, keys, values, barriers, count, left, acc, weights, highest, total, decay, scale,
            (begin + left * PAGES) * BOX, limit,
            True, FIRST, KEYS, STAGES, TURNS, SCORES, VALUES, WEIGHTS
        )  # fmt: skip
        count += 1
    for i in range(num_whole):
        acc, weights, highest, total, decay = _add_block(
            q, keys, values, barriers, count, num_whole - 1 - i, acc, weights, highest, total, decay, scale,
            0, limit,
            False, FIRST, KEYS, STAGES, TURNS, SCORES, VALUES, WEIGHTS
        )  # fmt: skip
        count += 1

    slot, phase = (count - 1) % STAGES, (count - 1) // STAGES & 1
    mbarrier.wait(v_full.index(slot), phase)
    acc = acc * gl.convert_layout(decay, VALUES_ROW)[:, None]
    pending = warpgroup_mma(weights, values.index(slot), acc, is_async=True)
    acc = warpgroup_mma_wait(0, [pending])
    mbarrier.arrive(v_empty.index(slot))
    return acc, gl.convert_layout(highest, VALUES_ROW), gl.convert_layout(total, VALUES_ROW), count


@gluon.jit
def _add_block(
    q, keys, values, barriers, count, left, acc, weights, highest, total, decay, scale, first_key, limit,
    MASKED: gl.constexpr, FIRST: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr,
    SCORES: gl.constexpr, VALUES: gl.constexpr, WEIGHTS: gl.constexpr
):  # fmt: skip
    """Scores and weights of block `count`, while the weights of the block before it are multiplied with its values.

    acc, before it is multiplied with decay, lacks that block. left: blocks of the tile after this one.
    """
    k_full, k_empty, v_full, v_empty, turns = barriers
    slot = count % STAGES
    v_slot, v_phase = (count - 1) % STAGES, (count - 1) // STAGES & 1
    nothing = gl.zeros([ROWS, KEYS], gl.float32, SCORES)
    _await_turn(turns, count, FIRST, TURNS)
    pending = warpgroup_mma(q, keys.index(slot).permute((1, 0)), nothing, use_acc=False, is_async=True)
    acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, VALUES))[:, None]
    mbarrier.wait(v_full.index(v_slot), v_phase)
    pending_acc = warpgroup_mma(weights, values.index(v_slot), acc, is_async=True)
    _end_turn(turns, FIRST, TURNS)
    scores = warpgroup_mma_wait(1, [pending])
    mbarrier.arrive(k_empty.index(slot))
    if MASKED:
        scores = _hide(scores, first_key, limit, KEYS, SCORES)
    highest_yet = gl.maximum(highest, gl.max(scores, 1) * scale)
    fresh = gl.exp2(scores * scale - highest_yet[:, None])
    decay = gl.exp2(highest - highest_yet)
    total = total * decay + gl.sum(fresh, 1)
    fresh = gl.convert_layout(fresh.to(gl.bfloat16), WEIGHTS)
    # The wait for the next keys is here because ptxas does not move the exponentials over its branch, but would move
    # them behind the wait for the product that they should overlap with.
    mbarrier.wait(k_full.index((count + 1) % STAGES), (count + 1) // STAGES & 1, pred=left > 0)
    acc = warpgroup_mma_wait(0, [pending_acc])
    mbarrier.arrive(v_empty.index(v_slot))
    return acc, fresh, highest_yet, total, decay


@gluon.jit
def _await_turn(turns, count, FIRST: gl.constexpr, TURNS: gl.constexpr):
    """The first group has the first turn: a fresh barrier lets a wait for phase 1 pass."""
    if TURNS:
        mbarrier.wait(turns.index(FIRST // ROWS), count & 1 if FIRST else (count & 1) ^ 1)


@gluon.jit
def _end_turn(turns, FIRST: gl.constexpr, TURNS: gl.constexpr):
    if TURNS:
        mbarrier.arrive(turns.index(1 - FIRST // ROWS))


@gluon.jit
def _hide(scores, first_key, limit, KEYS: gl.constexpr, SCORES: gl.constexpr):
    """Scores without those of keys at or after each row's limit."""
    key = first_key + gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
    return gl.where(key[None, :] < limit[:, None], scores, float("-inf"))


@gluon.jit
def _clear_values(tile, num_known, DIM: gl.constexpr, KEYS: gl.constexpr):
    """Zeros for values of no token: 0 * NaN would reach the sums. Both groups do it, and write the same."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    key = gl.arange(0, KEYS, gl.SliceLayout(1, LAYOUT))
    is_known = (key < num_known)[:, None] & (gl.arange(0, DIM, gl.SliceLayout(0, LAYOUT)) >= 0)[None, :]
    tile.store(gl.where(is_known, tile.load(LAYOUT), 0.0))
    fence_async_shared()
    gl.thread_barrier()
