"""Times of calls on a GPU, and the most that it can do."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

Call = Callable[[], object]
COLD_BYTES = 150e6
"""What calls must go through so that none finds its inputs in the second-level cache of 50 MB."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured, of this GPU."""

    read_gb_per_s: float
    copy_gb_per_s: float
    """Read and written."""
    tflop_per_s: float
    """Of bfloat16 matrices of 8192 x 8192."""

    def shortest_us(self, *, bytes_read: float = 0, bytes_written: float = 0, flops: float = 0) -> float:
        """What no kernel can be faster than: the slower of its transfers and its arithmetic."""
        rate = self.read_gb_per_s if not bytes_written else self.copy_gb_per_s
        if bytes_read > 8 * bytes_written:
            rate = self.read_gb_per_s
        return max((bytes_read + bytes_written) / rate / 1e3, flops / self.tflop_per_s / 1e6)


def graph_us(calls: Sequence[Call], replays: int = 9) -> float:
    """Microseconds of one call: the median of some replays of a CUDA graph of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times: list[float] = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def compile_all(calls: Sequence[Call]) -> list[Exception | None]:
    """Makes each call once, many at a time, so that their kernels are compiled; what each one raised."""

    def attempt(call: Call) -> Exception | None:
        try:
            call()
        except Exception as error:  # whatever a compiler raises: it is the caller's to judge
            return error
        return None

    # Synchronising gives each thread the device's context.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.cuda.synchronize) as executor:
        errors = list(executor.map(attempt, calls))
    torch.cuda.synchronize()
    return errors


def copies_beyond_cache(num_bytes: float, most: int = 128) -> int:
    """How many inputs of so many bytes do not fit in the second-level cache together."""
    return max(1, min(most, int(COLD_BYTES // num_bytes) + 1)) if num_bytes < COLD_BYTES else 1


def read_gb_per_s() -> float:
    """Of summing 4 GB."""
    data = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    return data.nbytes / graph_us([lambda: data.sum()] * 2) / 1e3


def measure_ceilings() -> Ceilings:
    """Takes a second."""
    source = torch.ones(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / graph_us([partial(target.copy_, source)] * 2) / 1e3
    del source, target
    a, b = (torch.randn((8192, 8192), device="cuda").bfloat16() for _ in range(2))
    flops = 2 * 8192**3 / graph_us([lambda: torch.mm(a, b)] * 4) / 1e6
    return Ceilings(read_gb_per_s(), copy, flops)
