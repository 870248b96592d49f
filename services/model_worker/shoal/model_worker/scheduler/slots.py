"""Everything the scheduler looks at in every step, as flat arrays indexed by slot.

A step touches all running sequences only through a handful of numpy operations; Python loops run over the few that
start, end, or cross a block boundary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.model_worker.request import Sequence
from shoal.model_worker.step import IntArray


class SlotTable:
    """One row a slot. Slots are handed out by `take` and come back by `give_back`; the scheduler fills the arrays.

    Plans run ahead of results, so the two are counted apart: `num_computed` is what all plans so far compute,
    `num_known` what results have told. A slot that decodes has one token more than its plans compute, known or about to
    be. For a filled slot, num_computed <= num_writable and num_computed < max_len.
    """

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self.num_slots = num_slots
        self.token_ids: NDArray[np.int32] = np.zeros((num_slots, max_model_len), np.int32)  # pages come when written
        self.num_known: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.num_computed: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.num_writable: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        """Tokens that the slot's blocks hold without asking the cache again."""
        self.num_committed: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        """Blocks that are in the prefix index."""
        self.max_len: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.stop_after: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        """Stop tokens count only when more than this many tokens are known."""
        self.ends_at_eos: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        self.has_stop_ids: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        self.stream_id: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        self.tenure: NDArray[np.int64] = np.zeros(num_slots, np.int64)
        """Goes up whenever a slot is emptied: tells whether a result still belongs to whom it was planned for."""
        self.sequences: list[Sequence | None] = [None] * num_slots
        self._decodes: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)
        self._decoding: IntArray | None = None
        self._free = list(range(num_slots - 1, -1, -1))
        self._num_filled = 0

    @property
    def num_free(self) -> int:
        """Slots that are neither filled nor reserved."""
        return len(self._free)

    @property
    def num_filled(self) -> int:
        """Slots that hold a sequence."""
        return self._num_filled

    def take(self) -> int:
        """A free slot. IndexError when there is none."""
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Returns a slot that `take` gave."""
        self._free.append(slot)

    def fill(self, slot: int, sequence: Sequence, num_writable: int, num_committed: int) -> None:
        """Puts a sequence that knows `sequence.token_ids` into a taken slot, nothing computed yet."""
        request, num_known = sequence.request, len(sequence.token_ids)
        self.token_ids[slot, :num_known] = sequence.token_ids
        self.num_known[slot] = num_known
        self.num_computed[slot] = 0
        self.num_writable[slot] = num_writable
        self.num_committed[slot] = num_committed
        self.max_len[slot] = request.max_len
        self.stop_after[slot] = request.num_prompt_tokens + request.sampling.min_tokens
        self.ends_at_eos[slot] = not request.sampling.ignore_eos
        self.has_stop_ids[slot] = bool(request.sampling.stop_token_ids)
        self._put(slot, sequence)

    def copy(self, source: int, target: int, sequence: Sequence) -> None:
        """Makes a taken slot an equal of `source` for another completion."""
        num_known = int(self.num_known[source])
        self.token_ids[target, :num_known] = self.token_ids[source, :num_known]
        for array in (
            self.num_known,
            self.num_computed,
            self.num_writable,
            self.num_committed,
            self.max_len,
            self.stop_after,
            self.ends_at_eos,
            self.has_stop_ids,
        ):
            array[target] = array[source]
        self._put(target, sequence)

    def empty(self, slot: int) -> None:
        """Removes the sequence; the slot stays taken."""
        self.set_decoding(slot, False)
        self.sequences[slot] = None
        self.tenure[slot] += 1
        self._num_filled -= 1

    def set_decoding(self, slot: int, decoding: bool) -> None:
        """Says whether the slot has one token to compute in each step from here on."""
        if self._decodes[slot] != decoding:
            self._decodes[slot] = decoding
            self._decoding = None

    def decoding(self) -> IntArray:
        """[D] the slots that decode, ascending. The same read-only array until one joins or leaves."""
        if self._decoding is None:
            self._decoding = np.flatnonzero(self._decodes).astype(np.int32)
            self._decoding.flags.writeable = False
        return self._decoding

    def known_token_ids(self, slot: int) -> IntArray:
        """Prompt and output so far, as a copy."""
        return self.token_ids[slot, : self.num_known[slot]].copy()

    def filled(self) -> list[Sequence]:
        """The sequences that hold a slot. O(slots): for the rare steps that preempt."""
        return [sequence for sequence in self.sequences if sequence is not None]

    def _put(self, slot: int, sequence: Sequence) -> None:
        self.stream_id[slot] = sequence.stream_id
        self.sequences[slot] = sequence
        sequence.slot = slot
        self._num_filled += 1
