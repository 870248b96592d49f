"""Flat arrays with one row per slot: all that a runner remembers of a sequence between steps."""

from __future__ import annotations

import numpy as np

from shoal.model_worker.step import Admission, BlockAssignment, IntArray


class SlotArrays:
    """Histories, block tables and counts. Changed in place, row by row; nothing here grows or is rebuilt per step."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        # One more than max_model_len: the last token sampled is remembered, though never computed.
        self.token_ids: IntArray = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int32)
        self.block_tables: IntArray = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)
        self.num_tokens: IntArray = np.zeros(max_num_seqs, dtype=np.int32)
        """Tokens known, 0 for an empty slot."""
        self.num_computed: IntArray = np.zeros(max_num_seqs, dtype=np.int32)
        self.num_prompt: IntArray = np.zeros(max_num_seqs, dtype=np.int32)

    def admit(self, admission: Admission) -> None:
        """Fills an empty slot. ValueError if it is not empty or the sequence does not fit."""
        slot, count = admission.slot, len(admission.token_ids)
        if self.num_tokens[slot]:
            raise ValueError(f"slot {slot} is occupied")
        if not admission.num_computed_tokens < count <= self.token_ids.shape[1]:
            raise ValueError(
                f"slot {slot} is given {count} tokens, {admission.num_computed_tokens} of them computed; needs more "
                f"than are computed and at most {self.token_ids.shape[1]}"
            )
        self.token_ids[slot, :count] = admission.token_ids
        self.block_tables[slot, : len(admission.block_ids)] = admission.block_ids
        self.num_tokens[slot] = count
        self.num_computed[slot] = admission.num_computed_tokens
        self.num_prompt[slot] = admission.num_prompt_tokens

    def release(self, slot: int) -> None:
        """Empties a slot."""
        self.num_tokens[slot] = 0

    def assign(self, assignments: tuple[BlockAssignment, ...]) -> None:
        """Sets entries of block tables."""
        if assignments:
            flat = np.array([(a.slot, a.index, a.block_id) for a in assignments], dtype=np.int32)
            self.block_tables[flat[:, 0], flat[:, 1]] = flat[:, 2]

    def fork(self, source: int, target: int) -> None:
        """Copies a slot to an empty one."""
        if self.num_tokens[target]:
            raise ValueError(f"slot {target} is occupied")
        count = self.num_tokens[source]
        self.token_ids[target, :count] = self.token_ids[source, :count]
        self.block_tables[target] = self.block_tables[source]
        for counts in (self.num_tokens, self.num_computed, self.num_prompt):
            counts[target] = counts[source]

    def append(self, slots: IntArray, token_ids: IntArray) -> None:
        """Adds one token to each of some distinct slots."""
        self.token_ids[slots, self.num_tokens[slots]] = token_ids
        self.num_tokens[slots] += 1
