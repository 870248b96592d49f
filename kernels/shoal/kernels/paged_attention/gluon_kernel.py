"""The kernel of tall tiles on Hopper: groups of warps with a task each, after FlashAttention 3 (Shah et al. 2024)."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from shoal.kernels.paged_attention.gluon_tile import BOX, ROWS, attend, tile_index, tile_of


@gluon.jit(
    do_not_specialize=["num_tiles", "table_stride", "rows_per_block", "first_row"],
    do_not_specialize_on_alignment=[
        "tables", "table_rows", "seq_lens", "query_starts", "items", "part_values", "part_statistics"
    ],
)  # fmt: skip
def attend_tall(
    q_ptr,
    out_ptr,
    pages,
    tables,
    table_rows,
    seq_lens,
    query_starts,
    part_values,
    part_statistics,
    items,
    num_tiles,
    q_stride,
    out_stride,
    table_stride,
    rows_per_block,
    first_row,
    scale,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    DIM: gl.constexpr,
    M: gl.constexpr,
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    TURNS: gl.constexpr,
    REGISTERS: gl.constexpr,
):
    """One or more tiles of a step. Two groups of four warps have 64 rows each; one warp fetches pages for both."""
    BOXES: gl.constexpr = KEYS // BOX * (DIM // BOX)
    TILE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q_tiles = gl.allocate_shared_memory(gl.bfloat16, [2, ROWS, DIM], TILE)
    k_boxes = gl.allocate_shared_memory(gl.bfloat16, [STAGES * BOXES, BOX, BOX], TILE)
    v_boxes = gl.allocate_shared_memory(gl.bfloat16, [STAGES * BOXES, BOX, BOX], TILE)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(turns.index(0), count=1)
    mbarrier.init(turns.index(1), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_empty.index(stage), count=2)
    barriers = (k_full, k_empty, v_full, v_empty, turns)
    boxes = (k_boxes, v_boxes)
    k_ring = k_boxes._reinterpret(gl.bfloat16, [STAGES, KEYS, DIM], TILE)
    v_ring = v_boxes._reinterpret(gl.bfloat16, [STAGES, KEYS, DIM], TILE)
    rings = (k_ring, v_ring)
    work = (items, num_tiles)
    # Constants keep their values only in tuples that have no name.
    gl.warp_specialize(
        [
            (attend, (
                work, q_ptr, out_ptr, seq_lens, query_starts, part_values, part_statistics, q_stride, out_stride, scale,
                q_tiles.index(0), rings, barriers, 0, NUM_KV_HEADS, GROUP, DIM, KEYS, STAGES, M, TURNS
            )),
            (attend, (
                work, q_ptr, out_ptr, seq_lens, query_starts, part_values, part_statistics, q_stride, out_stride, scale,
                q_tiles.index(1), rings, barriers, ROWS, NUM_KV_HEADS, GROUP, DIM, KEYS, STAGES, M, TURNS
            )),
            (fetch_pages, (
                work, pages, tables, table_rows, table_stride, rows_per_block, first_row, boxes, barriers,
                NUM_KV_HEADS, DIM, KEYS, STAGES
            )),
        ],
        [4, 1],
        [REGISTERS, 24],
    )  # fmt: skip


@gluon.jit
def fetch_pages(
    work, pages, tables, table_rows, table_stride, rows_per_block, first_row, rings, barriers,
    NUM_KV_HEADS: gl.constexpr, DIM: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Loads every block of the program's tiles, as slots become empty."""
    PAGES: gl.constexpr = KEYS // BOX
    keys, values = rings
    k_full, k_empty, v_full, v_empty, _turns = barriers
    num_tiles = work[1]
    count = 0
    for wave in range(gl.cdiv(num_tiles, gl.num_programs(0))):
        index = tile_index(wave)
        seq, _first_token, begin, end, _part = tile_of(work, index, NUM_KV_HEADS)
        if seq >= 0:
            table = tables + gl.load(table_rows + seq).to(gl.int64) * table_stride
            k_row = first_row + index % NUM_KV_HEADS * BOX
            v_row = k_row + NUM_KV_HEADS * BOX
            num_blocks = gl.cdiv(end - begin, PAGES)
            first = begin + (num_blocks - 1) * PAGES
            second = gl.minimum(first + PAGES - 1, end - 1)  # twice the last page rather than none
            a, b = gl.load(table + first), gl.load(table + second)
            for _ in range(num_blocks):
                slot, phase = count % STAGES, (count // STAGES & 1) ^ 1
                base_a, base_b = a * rows_per_block, b * rows_per_block
                # Page numbers one block ahead: they come from far away.
                first = gl.maximum(first - PAGES, begin)
                a, b = gl.load(table + first), gl.load(table + first + PAGES - 1, mask=first + PAGES <= end, other=0)
                mbarrier.wait(k_empty.index(slot), phase)
                _fetch_block(pages, base_a + k_row, base_b + k_row, k_full.index(slot), keys, slot, DIM, PAGES)
                mbarrier.wait(v_empty.index(slot), phase)
                _fetch_block(pages, base_a + v_row, base_b + v_row, v_full.index(slot), values, slot, DIM, PAGES)
                count += 1


@gluon.jit
def _fetch_block(pages, row_a, row_b, full, ring, slot, DIM: gl.constexpr, PAGES: gl.constexpr):
    """One block into a slot."""
    COLUMNS: gl.constexpr = DIM // BOX
    mbarrier.expect(full, COLUMNS * PAGES * BOX * BOX * 2)
    for column in gl.static_range(COLUMNS):
        box = (slot * COLUMNS + column) * PAGES
        tma.async_copy_global_to_shared(pages, [row_a, column * BOX], full, ring.index(box))
        if PAGES == 2:
            tma.async_copy_global_to_shared(pages, [row_b, column * BOX], full, ring.index(box + 1))
