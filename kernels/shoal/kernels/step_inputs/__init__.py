"""What a step reads, made on the GPU from the slots' state: a token that one step chose, the next one finds there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.step_inputs import reference

__all__ = ["DecodeInputs", "SlotState", "fill_inputs", "record_tokens", "reference", "resolve_tokens", "write_words"]


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
    query_starts: Tensor
    """[N + 1]: 0, 1, 2, ..."""

    @classmethod
    def allocate(cls, count: int, device: torch.device) -> DecodeInputs:
        """For up to `count` sequences."""
        arrays = torch.zeros((6, count), dtype=torch.int32, device=device)
        arrays[0] = -1
        starts = torch.arange(count + 1, dtype=torch.int32, device=device)
        slots, tokens, positions, mapping, lengths, rows = arrays.unbind()
        return cls(slots, tokens, positions, mapping, lengths, rows, starts)


def fill_inputs(inputs: DecodeInputs, state: SlotState) -> None:
    """Everything in `inputs` that follows from inputs.slots."""
    _implementation(inputs.slots).fill_inputs(inputs, state)


def resolve_tokens(token_ids: Tensor, state: SlotState) -> None:
    """Replaces every -1 - slot in token_ids [T] int32 by that slot's last token, in place."""
    _implementation(token_ids).resolve_tokens(token_ids, state)


def record_tokens(state: SlotState, slots: Tensor, token_ids: Tensor, seq_lens: Tensor) -> None:
    """Makes token_ids [N] the last tokens of slots [N] and seq_lens [N] their computed ones. All int32.

    Slots are distinct; negative ones are skipped.
    """
    _implementation(slots).record_tokens(state, slots, token_ids, seq_lens)


def write_words(target: Tensor, entries: Tensor) -> None:
    """target.flatten()[entries[0, i]] = entries[1, i] for every i.

    target: contiguous int32; entries: [2, n] int32 on its device, with distinct places. One launch of 25 us where
    torch's indexed assignment takes the host 70 us.
    """
    if not target.is_contiguous() or target.dtype != torch.int32 or entries.shape[0] != 2:
        raise ValueError(f"target must be contiguous int32 and entries [2, n], not {tuple(entries.shape)}")
    _implementation(target).write_words(target, entries)


def _implementation(tensor: Tensor):  # type: ignore[no-untyped-def]  # one of two modules
    if tensor.is_cuda:
        from shoal.kernels.step_inputs import triton_impl

        return triton_impl
    return reference
