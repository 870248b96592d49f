"""Which tokens a sequence has seen, for the penalties.

Sparse: memory and work grow with the sequence, not with the vocabulary (a dense table for 256 slots of a 150k
vocabulary would take 150 MB). Only slots with penalties have one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.model_worker.sampling.params import SampledSequence


@dataclass(slots=True)
class TokenCounts:
    """The distinct tokens of one sequence and how often each occurs in its output. Owned by one slot."""

    _ids: NDArray[np.int64]
    _output_counts: NDArray[np.float32]
    _length: int

    @classmethod
    def of(cls, prompt_ids: ArrayLike, output_ids: ArrayLike) -> TokenCounts:
        """Counts of a prompt and the output so far."""
        prompt = np.asarray(prompt_ids, dtype=np.int64)
        output = np.asarray(output_ids, dtype=np.int64)
        ids, inverse = np.unique(np.concatenate((prompt, output)), return_inverse=True)
        counts = np.bincount(inverse[len(prompt) :], minlength=len(ids)).astype(np.float32)
        return cls(ids, counts, len(ids))

    @classmethod
    def of_sequence(cls, sequence: SampledSequence) -> TokenCounts:
        """Counts of what is known of a sequence."""
        end = sequence.num_prompt_tokens
        return cls.of(sequence.token_ids[:end], sequence.token_ids[end:])

    @property
    def ids(self) -> NDArray[np.int64]:
        """[N] distinct tokens of prompt and output, in no particular order. A view, valid until the next `add`."""
        return self._ids[: self._length]

    @property
    def output_counts(self) -> NDArray[np.float32]:
        """[N] occurrences of each of `ids` in the output; 0 for tokens only in the prompt. A view like `ids`."""
        return self._output_counts[: self._length]

    def add(self, token_id: int) -> None:
        """Counts one more output token."""
        found = np.flatnonzero(self.ids == token_id)
        if len(found):
            self._output_counts[found[0]] += 1
            return
        if self._length == len(self._ids):
            capacity = max(16, 2 * self._length)
            self._ids = np.resize(self._ids, capacity)
            self._output_counts = np.resize(self._output_counts, capacity)
        self._ids[self._length] = token_id
        self._output_counts[self._length] = 1
        self._length += 1

    def copy(self) -> TokenCounts:
        """An independent copy, for a fork."""
        return TokenCounts(self.ids.copy(), self.output_counts.copy(), self._length)
