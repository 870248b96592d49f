"""Sequences that wait for a slot, in the policy's order."""

from __future__ import annotations

import heapq

from shoal.model_worker.request import Sequence


class WaitingQueue:
    """A heap with lazy removal: push and pop are O(log n), cancelling is O(1)."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, int], int, int, Sequence]] = []
        self._num_pushes = 0
        self._waiting: set[Sequence] = set()
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._waiting

    @property
    def num_tokens(self) -> int:
        """Tokens that the waiting sequences have to compute (prefix hits not known yet)."""
        return self._num_tokens

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence that is not in the queue."""
        if sequence in self._waiting:
            raise ValueError(f"{sequence.request.request_id} is already waiting")
        self._waiting.add(sequence)
        self._num_tokens += len(sequence.token_ids)
        self._num_pushes += 1  # unique, so that the heap never compares two sequences
        heapq.heappush(self._heap, (sequence.order, sequence.choice, self._num_pushes, sequence))

    def peek(self) -> Sequence | None:
        """The next in order, left where it is."""
        while self._heap and self._heap[0][3] not in self._waiting:
            heapq.heappop(self._heap)
        return self._heap[0][3] if self._heap else None

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out: because it was admitted, or given up."""
        self._waiting.remove(sequence)
        self._num_tokens -= len(sequence.token_ids)
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [entry for entry in self._heap if entry[3] in self._waiting]
            heapq.heapify(self._heap)
