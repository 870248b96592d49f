"""A plan's tokens laid flat, computed from the slots' arrays without a loop over sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.kernels.paged_attention import AttentionShape, plan_attention
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.step import IntArray, StepPlan


@dataclass(frozen=True, slots=True)
class FlatTokens:
    """A step's tokens one sequence after another, on the host: what every runner needs, whatever its device."""

    slots: IntArray
    """[S] the scheduled slots, writable."""
    query_starts: IntArray
    """[S + 1] the first row of each scheduled slot, in the plan's order."""
    first_positions: IntArray
    """[S] the position of that row's token."""
    seq_lens: IntArray
    """[S] tokens with KV once the step is done."""
    token_ids: IntArray
    """[T]"""
    positions: IntArray
    """[T]"""
    slot_mapping: IntArray
    """[T] block id * block_size + offset."""
    last_rows: NDArray[np.int64]
    """The last row of each slot that samples, in order."""


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """The forward batch, and the tokens it was made of."""

    forward: ForwardBatch
    tokens: FlatTokens


def lay_out(plan: StepPlan, slots: SlotArrays, block_size: int) -> FlatTokens:
    """Lays out a plan with at least one slot."""
    scheduled, counts = plan.slots.copy(), plan.num_tokens  # a plan is read-only, which torch.from_numpy refuses
    first = slots.num_computed[scheduled]
    starts = np.zeros(len(scheduled) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    if starts[-1] == len(scheduled):
        rows, positions = scheduled, first
    else:
        rows = np.repeat(scheduled, counts)
        positions = np.arange(starts[-1], dtype=np.int32) + np.repeat(first - starts[:-1], counts)
    blocks = slots.block_tables[rows, positions // block_size]
    return FlatTokens(
        slots=scheduled,
        query_starts=starts,
        first_positions=first,
        seq_lens=first + counts,
        token_ids=slots.token_ids[rows, positions],
        positions=positions,
        slot_mapping=blocks * np.int32(block_size) + positions % np.int32(block_size),
        last_rows=starts[1:][plan.samples].astype(np.int64) - 1,
    )


def build_batch(plan: StepPlan, slots: SlotArrays, shape: AttentionShape, *, all_outputs: bool = False) -> FlatBatch:
    """The batch of a plan on the CPU. Reads `slots`; its block tables are shared, not copied.

    Hidden states are asked for the last row of each slot that samples, in order, or with `all_outputs` for every row.
    """
    tokens = lay_out(plan, slots, shape.layout.block_size)
    attention = plan_attention(
        shape,
        torch.from_numpy(tokens.query_starts),
        torch.from_numpy(tokens.seq_lens),
        torch.from_numpy(slots.block_tables),
        torch.from_numpy(tokens.slots),
    )
    last_rows = tokens.last_rows
    forward = ForwardBatch(
        token_ids=torch.from_numpy(tokens.token_ids),
        positions=torch.from_numpy(tokens.positions),
        slot_mapping=torch.from_numpy(tokens.slot_mapping),
        attention=attention,
        output_rows=None if all_outputs or len(last_rows) == len(tokens.positions) else torch.from_numpy(last_rows),
    )
    return FlatBatch(forward, tokens)
