"""What a decoding step reads, made on the GPU from the slots' state: nothing but slot numbers comes from the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.decode_inputs import reference

__all__ = ["DecodeInputs", "SlotState", "append_tokens", "fill_inputs", "reference"]


@dataclass(frozen=True, slots=True)
class SlotState:
    """Of every slot, int32 on one device."""

    block_tables: Tensor
    """[slots, max_blocks]"""
    last_tokens: Tensor
    """[slots] the last known token, which the next step computes."""
    num_computed: Tensor
    """[slots] tokens with KV; also that token's position."""
    block_size: int

    @classmethod
    def allocate(cls, num_slots: int, max_blocks: int, block_size: int, device: torch.device) -> SlotState:
        """All zeros."""
        tables = torch.zeros((num_slots, max_blocks), dtype=torch.int32, device=device)
        tokens, computed = torch.zeros((2, num_slots), dtype=torch.int32, device=device)
        return cls(tables, tokens, computed, block_size)


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """The inputs of a step of up to N sequences, int32, in the same memory at every step. Unused places come last."""

    slots: Tensor
    """[N]; -1 in unused places. Written by the host, all else by `fill_inputs`."""
    token_ids: Tensor
    """[N]"""
    positions: Tensor
    """[N]"""
    slot_mapping: Tensor
    """[N] block id * block_size + offset; -1 in unused places."""
    seq_lens: Tensor
    """[N]; 0 in unused places."""
    table_rows: Tensor
    """[N]"""
    sampled: Tensor
    """[N] the tokens that the step chose; by `append_tokens`."""
    query_starts: Tensor
    """[N + 1]: 0, 1, 2, ..."""

    @classmethod
    def allocate(cls, count: int, device: torch.device) -> DecodeInputs:
        """For up to `count` sequences."""
        arrays = torch.zeros((7, count), dtype=torch.int32, device=device)
        arrays[0] = -1
        slots, tokens, positions, mapping, lengths, rows, sampled = arrays.unbind()
        starts = torch.arange(count + 1, dtype=torch.int32, device=device)
        return cls(slots, tokens, positions, mapping, lengths, rows, sampled, starts)


def fill_inputs(inputs: DecodeInputs, state: SlotState) -> None:
    """Everything in `inputs` that follows from inputs.slots."""
    if inputs.slots.is_cuda:
        from shoal.kernels.decode_inputs import triton_impl

        triton_impl.fill_inputs(inputs, state)
    else:
        reference.fill_inputs(inputs, state)


def append_tokens(inputs: DecodeInputs, state: SlotState, token_ids: Tensor) -> None:
    """Makes token_ids [N] the last tokens of inputs.slots, counts the ones before as computed, fills inputs.sampled."""
    if inputs.slots.is_cuda:
        from shoal.kernels.decode_inputs import triton_impl

        triton_impl.append_tokens(inputs, state, token_ids)
    else:
        reference.append_tokens(inputs, state, token_ids)
