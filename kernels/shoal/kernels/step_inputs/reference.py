"""The inputs of a step in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from shoal.kernels.step_inputs import DecodeInputs, SlotState


def fill_inputs(inputs: DecodeInputs, state: SlotState) -> None:
    """See `shoal.kernels.step_inputs.fill_inputs`."""
    used = inputs.slots >= 0
    slots = inputs.slots.clamp(min=0).long()
    positions = state.num_computed[slots]
    blocks = state.block_tables[slots, (positions // state.block_size).long()]
    inputs.token_ids.copy_(torch.where(used, state.last_tokens[slots], 0))
    inputs.positions.copy_(torch.where(used, positions, 0))
    inputs.slot_mapping.copy_(torch.where(used, blocks * state.block_size + positions % state.block_size, -1))
    inputs.seq_lens.copy_(torch.where(used, positions + 1, 0))
    inputs.table_rows.copy_(slots)


def resolve_tokens(token_ids: Tensor, state: SlotState) -> None:
    """See `shoal.kernels.step_inputs.resolve_tokens`."""
    slots = (-1 - token_ids).clamp(min=0).long()
    token_ids.copy_(torch.where(token_ids < 0, state.last_tokens[slots], token_ids))


def record_tokens(state: SlotState, slots: Tensor, token_ids: Tensor, seq_lens: Tensor) -> None:
    """See `shoal.kernels.step_inputs.record_tokens`."""
    used = slots >= 0
    state.last_tokens[slots[used].long()] = token_ids[used]
    state.num_computed[slots[used].long()] = seq_lens[used]


def write_words(target: Tensor, entries: Tensor) -> None:
    """See `shoal.kernels.step_inputs.write_words`."""
    target.view(-1)[entries[0].long()] = entries[1]
