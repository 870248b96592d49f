"""A StepPlan in the making."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shoal.model_worker.step import Admission, BlockAssignment, Fork, IntArray, LayerFeed, StepPlan

_A = TypeVar("_A", bound=NDArray[Any])


class PlanDraft:
    """Collects what the next plan must tell the runner, between steps too (slots that ended, blocks replaced)."""

    def __init__(self, max_num_seqs: int) -> None:
        self.parts: dict[int, int] = {}
        """Tokens to compute of each slot that does not simply decode."""
        self._released: list[int] = []
        self._admitted: list[Admission] = []
        self._copies: list[tuple[int, int]] = []
        self._assigned: list[BlockAssignment] = []
        self._ones = _frozen(np.ones(max_num_seqs, np.int32))
        self._trues = _frozen(np.ones(max_num_seqs, np.bool_))

    def release(self, slot: int) -> None:
        """The slot's sequence ended or was preempted. What was planned for it in this step is dropped with it.

        A block copy may stay: its target is computed anew by whoever gets it in this step.
        """
        if self._assigned:
            self._assigned = [entry for entry in self._assigned if entry.slot != slot]
        self.parts.pop(slot, None)
        if any(admission.slot == slot for admission in self._admitted):  # the runner never heard of it
            self._admitted = [admission for admission in self._admitted if admission.slot != slot]
        else:
            self._released.append(slot)

    def admit(self, admission: Admission) -> None:
        """A sequence enters a slot."""
        self._admitted.append(admission)

    def assign(self, slot: int, index: int, block_id: int) -> None:
        """A slot gets a block at a position of its table."""
        self._assigned.append(BlockAssignment(slot, index, block_id))

    def repeat(self, source: int, target: int) -> None:
        """`target` was forked from `source` by the runner, before it knew of what is assigned to `source` here."""
        self._assigned += [replace(entry, slot=target) for entry in self._assigned if entry.slot == source]

    def copy(self, blocks: tuple[int, int]) -> None:
        """(source, target): KV to copy before anything is computed."""
        self._copies.append(blocks)

    def build(
        self, decoding: IntArray, completes: list[bool], forks: tuple[Fork, ...], feed: LayerFeed | None = None
    ) -> StepPlan:
        """The plan: `decoding` slots with one token each, then `parts`, of which `completes` reach their last token.

        Leaves the draft empty. A step in which everyone decodes reuses the arrays of the step before.
        """
        slots, num_tokens, samples = decoding, self._ones[: len(decoding)], self._trues[: len(decoding)]
        if self.parts:
            slots = np.concatenate([slots, np.fromiter(self.parts, np.int32)])
            num_tokens = np.concatenate([num_tokens, np.fromiter(self.parts.values(), np.int32)])
            samples = np.concatenate([samples, np.array(completes, np.bool_)])
        plan = StepPlan(
            released=tuple(self._released),
            admitted=tuple(self._admitted),
            block_copies=tuple(self._copies),
            assigned=tuple(self._assigned),
            slots=slots,
            num_tokens=num_tokens,
            samples=samples,
            forks=forks,
            feed=feed,
        )
        self.parts, self._released, self._admitted, self._copies, self._assigned = {}, [], [], [], []
        return plan


def _frozen(array: _A) -> _A:
    array.flags.writeable = False
    return array
