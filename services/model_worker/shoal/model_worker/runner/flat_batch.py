"""A plan's tokens laid flat, computed from the slots' arrays without a loop over sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from shoal.kernels.paged_attention import AttentionShape, plan_attention
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.step import IntArray, StepPlan


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """The forward batch, and what is needed to find a sequence's rows in it."""

    forward: ForwardBatch
    query_starts: IntArray
    """[S + 1] the first row of each scheduled slot, in the plan's order."""
    first_positions: IntArray
    """[S] the position of that row's token."""


def build_batch(plan: StepPlan, slots: SlotArrays, shape: AttentionShape, *, all_outputs: bool = False) -> FlatBatch:
    """Lays out a plan with at least one slot. Reads `slots`; its block tables are shared, not copied.

    Hidden states are asked for the last row of each slot that samples, in order, or with `all_outputs` for every row.
    """
    scheduled, counts = plan.slots.copy(), plan.num_tokens  # a plan is read-only, which torch.from_numpy refuses
    block_size = shape.layout.block_size
    first = slots.num_computed[scheduled]
    starts = np.zeros(len(scheduled) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    if starts[-1] == len(scheduled):
        rows, positions = scheduled, first
    else:
        rows = np.repeat(scheduled, counts)
        positions = np.arange(starts[-1], dtype=np.int32) + np.repeat(first - starts[:-1], counts)
    blocks = slots.block_tables[rows, positions // block_size]
    slot_mapping = blocks * np.int32(block_size) + positions % np.int32(block_size)
    attention = plan_attention(
        shape,
        torch.from_numpy(starts),
        torch.from_numpy(first + counts),
        torch.from_numpy(slots.block_tables),
        torch.from_numpy(scheduled),
    )
    last_rows = starts[1:][plan.samples].astype(np.int64) - 1
    forward = ForwardBatch(
        token_ids=torch.from_numpy(slots.token_ids[rows, positions]),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(slot_mapping),
        attention=attention,
        output_rows=None if all_outputs or len(last_rows) == starts[-1] else torch.from_numpy(last_rows),
    )
    return FlatBatch(forward, starts, first)
