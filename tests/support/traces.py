"""Makes small traces."""

from __future__ import annotations

import random

from shoal.model_worker.simulated_timing import LLAMA_8B_H100, SimulatedGpu
from shoal.simulator.trace import TRACE_BLOCK, TraceRequest


def small_gpu(num_blocks: int = 256) -> SimulatedGpu:
    """Slower by nothing, smaller by much."""
    return SimulatedGpu(LLAMA_8B_H100.timer, 64, num_blocks, max_num_seqs=8, max_num_batched_tokens=1024)


def conversations(
    num_requests: int, *, seed: int = 0, num_sessions: int = 8, gap_ms: float = 400.0
) -> list[TraceRequest]:
    """Sessions whose prompts grow by a block or two a turn, in random order, with a first block common to all."""
    randomness = random.Random(seed)
    sessions: list[list[int]] = [[0] for _ in range(num_sessions)]
    next_id, now_ms, trace = 1, 0.0, []
    for _ in range(num_requests):
        session = randomness.randrange(num_sessions)
        for _ in range(randomness.randint(1, 2)):
            sessions[session].append(next_id)
            next_id += 1
        if len(sessions[session]) > 12:
            sessions[session] = [0, next_id]
            next_id += 1
        ids = tuple(sessions[session])
        length = TRACE_BLOCK * len(ids) - randomness.randrange(TRACE_BLOCK)
        trace.append(TraceRequest(now_ms, length, randomness.randint(1, 40), ids))
        now_ms += randomness.choice((0.0, gap_ms))
    return trace


def without_reuse(num_requests: int, *, gap_ms: float = 100.0) -> list[TraceRequest]:
    """No two prompts have a block in common."""
    return [TraceRequest(i * gap_ms, 700, 10, (2 * i, 2 * i + 1)) for i in range(num_requests)]
