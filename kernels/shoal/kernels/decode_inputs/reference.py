"""The inputs of a decoding step in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from shoal.kernels.decode_inputs import DecodeInputs, SlotState


def fill_inputs(inputs: DecodeInputs, state: SlotState) -> None:
    """See `shoal.kernels.decode_inputs.fill_inputs`."""
    used = inputs.slots >= 0
    slots = inputs.slots.clamp(min=0).long()
    positions = state.num_computed[slots]
    blocks = state.block_tables[slots, (positions // state.block_size).long()]
    inputs.token_ids.copy_(torch.where(used, state.last_tokens[slots], 0))
    inputs.positions.copy_(torch.where(used, positions, 0))
    inputs.slot_mapping.copy_(torch.where(used, blocks * state.block_size + positions % state.block_size, -1))
    inputs.seq_lens.copy_(torch.where(used, positions + 1, 0))
    inputs.table_rows.copy_(slots)


def append_tokens(inputs: DecodeInputs, state: SlotState, token_ids: Tensor) -> None:
    """See `shoal.kernels.decode_inputs.append_tokens`."""
    used = inputs.slots >= 0
    slots, tokens = inputs.slots[used].long(), token_ids[used].int()
    state.last_tokens[slots] = tokens
    state.num_computed[slots] += 1
    inputs.sampled[used] = tokens
