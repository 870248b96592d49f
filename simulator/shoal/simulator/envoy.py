"""What Envoy does when the gateway names no worker: the mesh cluster's own balancing, in virtual time."""

from __future__ import annotations

import hashlib
import heapq
import random
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from shoal.simulator.worker import VirtualWorker

REPORT_S: Final = 0.5
"""Between two load reports of a worker, as the operator configures it."""
RING_SIZE: Final = 4096
_FLOOR: Final = 0.01
_MIN_RATE: Final = 1.0


class RingHash:
    """Envoy's ring_hash, with SHA-256 for xxHash: a worker has an equal number of places in a ring."""

    def __init__(self, num_workers: int) -> None:
        places = -(-RING_SIZE // num_workers)
        self._ring = sorted((_hash(f"{worker}_{i}"), worker) for worker in range(num_workers) for i in range(places))

    def choose(self, prefix_hash: str) -> int:
        """The worker at the next place."""
        return self._ring[bisect_left(self._ring, (_hash(prefix_hash), 0)) % len(self._ring)][1]


class WeightedRoundRobin:
    """Envoy's client_side_weighted_round_robin by workers' load reports: earliest deadline first.

    A worker's weight is generated tokens a second over utilization, the larger of its used share of KV blocks and its
    queue, with the floors that `shoal.model_worker.orca` applies. All workers report at the same moment.
    """

    def __init__(self, workers: Sequence[VirtualWorker]) -> None:
        self._workers = workers
        self._weights = [1.0] * len(workers)
        self._tokens = [0] * len(workers)
        self._report_s = 0.0
        self._random = random.Random(0)  # noqa: S311 - equal runs are equal
        self._deadlines = [(1.0, worker) for worker in range(len(workers))]

    def choose(self, now_s: float) -> int:
        """The next worker in turn."""
        if now_s >= self._report_s + REPORT_S:
            self._report(now_s - self._report_s)
            self._report_s = now_s
        deadline, worker = self._deadlines[0]
        heapq.heapreplace(self._deadlines, (deadline + 1 / self._weights[worker], worker))
        return worker

    def _report(self, elapsed_s: float) -> None:
        for number, worker in enumerate(self._workers):
            tokens, kv_usage, queue = worker.load()
            rate = max(_MIN_RATE, (tokens - self._tokens[number]) / elapsed_s)
            self._tokens[number] = tokens
            self._weights[number] = rate / max(_FLOOR, kv_usage, queue)
        start = self._deadlines[0][0]
        phases = [
            self._random.random() for _ in self._weights
        ]  # as Envoy: else few picks a report all go to the heaviest
        self._deadlines = [
            (start + phase / weight, worker)
            for worker, (phase, weight) in enumerate(zip(phases, self._weights, strict=True))
        ]
        heapq.heapify(self._deadlines)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
