"""Sampling on a GPU in two launches, without sorting and without atomics.

1. `_read_chunks`, a program for each chunk of each row: edits logits, keeps the chunk's maximum and its sum of weights.
2. `_choose`, a program for each row: joins the chunks. Greedy rows are done then, and rows without filters after one
   chunk is read again, the one that holds their number. `triton_filters` has what filtered rows do.

Bytes read and written for each token of the vocabulary: greedy and plain sampling 4; edits 4 more, penalties 2 more;
filters that keep no more than a chunk 8 more (the row twice), others 4 for each of about ten passes, all by one
multiprocessor and mostly from the L2 cache.

Chunks are the same in every batch and sums have a fixed order, so that a row's token does not depend on other rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.kernels.sampling import (
    BIASED,
    FILTERED,
    GREEDY,
    MAX_BIASES,
    MAX_STOP_IDS,
    PENALIZED,
    SLOT_DTYPE,
    SLOT_WORDS,
    SamplingState,
    SamplingWorkspace,
)
from shoal.kernels.sampling.triton_filters import filter_row, read_tile
from shoal.kernels.sampling.tuning import choose

_BIASED, _PENALIZED = tl.constexpr(BIASED), tl.constexpr(PENALIZED)
_GREEDY, _FILTERED = tl.constexpr(GREEDY), tl.constexpr(FILTERED)
_MAX_BIASES, _MAX_STOP_IDS = tl.constexpr(MAX_BIASES), tl.constexpr(MAX_STOP_IDS)
_BIAS_STEPS, _STOP_STEPS = tl.constexpr(MAX_BIASES.bit_length()), tl.constexpr(MAX_STOP_IDS.bit_length())
_SLOT_WORDS = tl.constexpr(SLOT_WORDS)


def _word(name: str) -> tl.constexpr:
    fields = SLOT_DTYPE.fields
    assert fields is not None
    return tl.constexpr(fields[name][1] // 4)


_FLAGS, _TEMPERATURE, _MIN_P, _TOP_K = _word("flags"), _word("temperature"), _word("min_p"), _word("top_k")
_TOP_P, _TYPICAL_P, _CHOICE, _SEED = _word("top_p"), _word("typical_p"), _word("choice"), _word("seed")
_FREQUENCY, _PRESENCE = _word("frequency_penalty"), _word("presence_penalty")
_REPETITION = _word("repetition_penalty")
_NUM_OUTPUTS, _MIN_TOKENS = _word("num_outputs"), _word("min_tokens")
_NUM_BIASES, _NUM_STOP_IDS = _word("num_biases"), _word("num_stop_ids")


def sample(logits: Tensor, slots: Tensor, state: SamplingState, workspace: SamplingWorkspace) -> Tensor:
    """See `shoal.kernels.sampling.sample`."""
    (rows, vocab_size), chunk = logits.shape, workspace.values.shape[1]
    token_ids = torch.empty(rows, dtype=torch.int32, device=logits.device)
    if not rows:
        return token_ids
    chunks, tuning = workspace.largest.shape[1], choose(logits.device, vocab_size)
    _read_chunks[(chunks, rows)](
        logits,
        logits.stride(0),
        slots,
        state.slots,
        state.bias_ids,
        state.bias_values,
        state.stop_ids,
        state.counts,
        workspace.edited,
        workspace.largest,
        workspace.argmax,
        workspace.masses,
        vocab_size,
        CHUNK=chunk,
        num_warps=tuning.read_num_warps,
        enable_fp_fusion=False,  # penalties round as they do in torch
    )
    _choose[(rows,)](
        logits,
        logits.stride(0),
        slots,
        state.slots,
        state.counts,
        workspace.edited,
        workspace.largest,
        workspace.argmax,
        workspace.masses,
        workspace.values,
        workspace.ids,
        token_ids,
        vocab_size,
        CHUNK=chunk,
        CHUNKS=triton.next_power_of_2(chunks),
        WIDTH=min(chunk, tuning.filter_width),
        num_warps=tuning.choose_num_warps,
        enable_fp_fusion=False,  # a score must be the same number in every pass
    )
    return token_ids


@triton.jit
def _float(packed, WORD: tl.constexpr):
    return tl.load(packed + WORD).to(tl.float32, bitcast=True)


@triton.jit
def _is_edited(packed):
    flags = tl.load(packed + _FLAGS)
    is_early = tl.load(packed + _NUM_OUTPUTS) < tl.load(packed + _MIN_TOKENS)
    return ((flags & (_BIASED | _PENALIZED)) != 0) | is_early


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _read_chunks(
    logits, row_stride, slots, packed_slots, bias_ids, bias_values, stop_ids, counts, edited_rows, largest, argmax,
    masses, vocab_size, CHUNK: tl.constexpr
):  # fmt: skip
    row, chunk = tl.program_id(1).to(tl.int64), tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    packed = packed_slots + slot * _SLOT_WORDS
    flags = tl.load(packed + _FLAGS)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    exists = at < vocab_size
    x = tl.load(logits + row * row_stride + at, mask=exists, other=float("-inf"))
    if _is_edited(packed):
        if flags & _BIASED:
            ids, count = bias_ids + slot * _MAX_BIASES, tl.load(packed + _NUM_BIASES)
            place, found = _find(ids, count, at, _BIAS_STEPS)
            x += tl.load(bias_values + slot * _MAX_BIASES + place, mask=found, other=0.0)
        if tl.load(packed + _NUM_OUTPUTS) < tl.load(packed + _MIN_TOKENS):
            ids, count = stop_ids + slot * _MAX_STOP_IDS, tl.load(packed + _NUM_STOP_IDS)
            place, found = _find(ids, count, at, _STOP_STEPS)
            x = tl.where(found, float("-inf"), x)
        if flags & _PENALIZED:
            seen = tl.load(counts + slot * vocab_size + at, mask=exists, other=0).to(tl.int32)
            x = _penalize(x, seen, packed)
        tl.store(edited_rows + row * vocab_size + at, x, mask=exists)
    x = tl.minimum(tl.where(x == x, x, float("-inf")), 3.4028234663852886e38)
    highest = tl.max(x, 0)
    part = row * tl.num_programs(0) + chunk
    tl.store(largest + part, highest)
    tl.store(argmax + part, tl.min(tl.where(x == highest, at, vocab_size), 0))
    if (flags & _GREEDY) == 0:
        shifted = (x - tl.where(highest == float("-inf"), 0.0, highest)) * (1.0 / _float(packed, _TEMPERATURE))
        tl.store(masses + part, tl.sum(tl.exp(shifted), 0))


@triton.jit
def _find(ids, count, wanted, STEPS: tl.constexpr):
    """Where each of `wanted` lies in the rising ids[:count], and whether it is there: a binary search each."""
    low = tl.zeros_like(wanted)
    high = low + count
    for _ in range(STEPS):
        middle = (low + high) // 2
        is_below = tl.load(ids + middle, mask=middle < count, other=2147483647) < wanted
        low = tl.where(is_below, middle + 1, low)
        high = tl.where(is_below, high, middle)
    return low, tl.load(ids + low, mask=low < count, other=-1) == wanted


@triton.jit
def _penalize(x, seen, packed):
    repetition, times = _float(packed, _REPETITION), (seen & 0x7FFF).to(tl.float32)
    changed = tl.where(x > 0, tl.math.div_rn(x, repetition), x * repetition)
    changed -= _float(packed, _FREQUENCY) * times
    changed -= tl.where(times > 0, _float(packed, _PRESENCE), 0.0)
    return tl.where(seen != 0, changed, x)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _choose(
    logits, row_stride, slots, packed_slots, counts, edited_rows, largest, argmax, masses, values, ids, token_ids,
    vocab_size, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        tl.store(token_ids + row, 0)
        return
    packed = packed_slots + slot * _SLOT_WORDS
    flags = tl.load(packed + _FLAGS)
    num_outputs = tl.load(packed + _NUM_OUTPUTS)
    num_chunks = (vocab_size + CHUNK - 1) // CHUNK
    chunk = tl.arange(0, CHUNKS)
    exists = chunk < num_chunks
    part = row * num_chunks + chunk
    highest = tl.load(largest + part, mask=exists, other=float("-inf"))
    highest_of_all = tl.max(highest, 0)
    first = tl.load(argmax + part, mask=exists & (highest == highest_of_all), other=2147483647)
    token = tl.min(first, 0)
    if ((flags & _GREEDY) == 0) & (highest_of_all > float("-inf")):
        scale = 1.0 / _float(packed, _TEMPERATURE)
        source = logits + row * row_stride
        if _is_edited(packed):
            source = edited_rows + row * vocab_size
        tile_masses = tl.load(masses + part, mask=exists, other=0.0) * tl.exp((highest - highest_of_all) * scale)
        length = vocab_size
        lowest, center, width = float("-inf"), 0.0, float("inf")
        if flags & _FILTERED:
            source, length, tile_masses, lowest, center, width = filter_row(
                source, length, tile_masses, highest_of_all, scale, values + row * CHUNK, ids + row * CHUNK,
                _float(packed, _MIN_P), tl.load(packed + _TOP_K), _float(packed, _TOP_P), _float(packed, _TYPICAL_P),
                CHUNK, CHUNKS, WIDTH
            )  # fmt: skip
        number = _uniform(packed, num_outputs)
        drawn = _draw(source, length, tile_masses, highest_of_all, scale, lowest, center, width, number, CHUNK, CHUNKS)
        if drawn >= 0:
            token = drawn
            if length < vocab_size:
                token = tl.load(ids + row * CHUNK + drawn)
    tl.store(token_ids + row, token)
    tl.store(packed + _NUM_OUTPUTS, num_outputs + 1)
    if flags & _PENALIZED:
        seen = tl.load(counts + slot * vocab_size + token)
        tl.store(counts + slot * vocab_size + token, tl.where((seen & 0x7FFF) == 0x7FFF, seen, seen + 1))


@triton.jit
def _uniform(packed, position):
    """`position`'s number in [0, 1), a multiple of 2**-53."""
    low = tl.load(packed + _SEED).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(packed + _SEED + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    choice = tl.load(packed + _CHOICE)
    first, second, _, _ = tl.philox((high << 32) | low, position, choice, choice * 0, choice * 0)
    bits = ((first.to(tl.uint64) << 32) | second.to(tl.uint64)) >> 11
    return bits.to(tl.int64).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _draw(
    source, length, masses, largest, scale, lowest, center, width, number, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """The place in `source` where the running sum of weights passes `number` of their total; -1 if all are 0."""
    chunk = tl.arange(0, CHUNKS)
    sums = tl.cumsum(masses.to(tl.float64), 0)
    target = number * tl.max(sums, 0)
    chosen = _first(chunk, (sums > target) & (masses > 0), masses > 0)
    target -= tl.max(tl.where(chunk < chosen, sums, 0.0), 0)
    at = chosen * CHUNK + tl.arange(0, CHUNK)
    z, weight = read_tile(source, at, length, largest, scale)
    weight = tl.where((z >= lowest) & (tl.abs(z - center) <= width), weight, 0.0)
    inside = tl.cumsum(weight.to(tl.float64), 0)
    return _first(at, (inside > target) & (weight > 0), weight > 0)


@triton.jit
def _first(at, is_reached, is_possible):
    """The first place that is reached; where rounding has left none, the last possible one; -1 where none is."""
    first = tl.min(tl.where(is_reached, at, 2147483647), 0)
    last = tl.max(tl.where(is_possible, at, -1), 0)
    return tl.minimum(first, last)
