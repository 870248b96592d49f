"""The inputs of a step in launches that a CUDA graph can hold."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.step_inputs import DecodeInputs, SlotState

_BLOCK = 128


def fill_inputs(inputs: DecodeInputs, state: SlotState) -> None:
    """See `shoal.kernels.step_inputs.fill_inputs`."""
    count = inputs.slots.shape[0]
    _fill[(triton.cdiv(count, _BLOCK),)](
        inputs.slots,
        state.last_tokens,
        state.num_computed,
        state.block_tables,
        inputs.token_ids,
        inputs.positions,
        inputs.slot_mapping,
        inputs.seq_lens,
        inputs.table_rows,
        count,
        state.block_tables.stride(0),
        BLOCK_SIZE=state.block_size,
        BLOCK=_BLOCK,
    )


def resolve_tokens(token_ids: Tensor, state: SlotState) -> None:
    """See `shoal.kernels.step_inputs.resolve_tokens`."""
    count = token_ids.shape[0]
    _resolve[(triton.cdiv(count, _BLOCK),)](token_ids, state.last_tokens, count, BLOCK=_BLOCK)


def record_tokens(state: SlotState, slots: Tensor, token_ids: Tensor, seq_lens: Tensor) -> None:
    """See `shoal.kernels.step_inputs.record_tokens`."""
    count = slots.shape[0]
    _record[(triton.cdiv(count, _BLOCK),)](
        slots, token_ids, seq_lens, state.last_tokens, state.num_computed, count, BLOCK=_BLOCK
    )


def write_words(target: Tensor, entries: Tensor) -> None:
    """See `shoal.kernels.step_inputs.write_words`."""
    count = entries.shape[1]
    if count:
        _write[(triton.cdiv(count, _BLOCK),)](target, entries, count, BLOCK=_BLOCK)


@triton.jit
def _fill(
    slots, last_token, num_computed, block_tables, token_ids, positions, slot_mapping, seq_lens, table_rows, count,
    table_stride, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = at < count
    slot = tl.load(slots + at, mask=exists, other=-1)
    used = slot >= 0
    position = tl.load(num_computed + slot, mask=used, other=0)
    token = tl.load(last_token + slot, mask=used, other=0)
    table = block_tables + slot.to(tl.int64) * table_stride
    block = tl.load(table + position // BLOCK_SIZE, mask=used, other=0)
    tl.store(token_ids + at, token, mask=exists)
    tl.store(positions + at, position, mask=exists)
    tl.store(slot_mapping + at, tl.where(used, block * BLOCK_SIZE + position % BLOCK_SIZE, -1), mask=exists)
    tl.store(seq_lens + at, tl.where(used, position + 1, 0), mask=exists)
    tl.store(table_rows + at, tl.where(used, slot, 0), mask=exists)


@triton.jit(do_not_specialize=["count"])
def _write(target, entries, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = at < count
    place = tl.load(entries + at, mask=exists, other=0).to(tl.int64)
    tl.store(target + place, tl.load(entries + count + at, mask=exists, other=0), mask=exists)


@triton.jit(do_not_specialize=["count"])
def _resolve(token_ids, last_token, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(token_ids + at, mask=at < count, other=0)
    tl.store(token_ids + at, tl.load(last_token - 1 - token, mask=token < 0, other=0), mask=token < 0)


@triton.jit(do_not_specialize=["count"])
def _record(slots, token_ids, seq_lens, last_token, num_computed, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + at, mask=at < count, other=-1)
    used = slot >= 0
    tl.store(last_token + slot, tl.load(token_ids + at, mask=used, other=0), mask=used)
    tl.store(num_computed + slot, tl.load(seq_lens + at, mask=used, other=0), mask=used)
