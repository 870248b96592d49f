"""The part of the slots' state that lives on the GPU: a decoding step needs nothing from the host but its slots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from shoal.kernels.step_inputs import SlotState, write_words
from shoal.kernels.transfers import upload
from shoal.model_worker.step import IntArray, StepPlan


class DeviceSlots:
    """Block tables, last tokens and counts by slot. One writer: the runner's stream."""

    def __init__(self, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self.state = SlotState.allocate(max_num_seqs, max_blocks, block_size, device)
        self._device = device

    def assign(self, plan: StepPlan) -> None:
        """Takes over the block ids that a plan names."""
        width = self.state.block_tables.shape[1]
        places: list[Sequence[int]] = [[a.slot * width + a.index for a in plan.assigned]]
        blocks: list[Sequence[int]] = [[a.block_id for a in plan.assigned]]
        for admission in plan.admitted:
            first = admission.slot * width
            places.append(range(first, first + len(admission.block_ids)))
            blocks.append(admission.block_ids)
        entries = [list(chain.from_iterable(each)) for each in (places, blocks)]
        if entries[0]:
            write_words(self.state.block_tables, upload(np.array(entries, dtype=np.int32), self._device))

    def fork(self, source: int, target: int) -> None:
        """Copies a slot's block table."""
        self.state.block_tables[target] = self.state.block_tables[source]

    def set_tokens(self, slots: IntArray, token_ids: IntArray, num_computed: IntArray) -> None:
        """Notes what a step that was not prepared here has made of some slots."""
        columns = np.stack((slots, token_ids, num_computed)).astype(np.int32, copy=False)
        at, tokens, counts = upload(columns, self._device)
        self.state.last_tokens[at] = tokens
        self.state.num_computed[at] = counts
