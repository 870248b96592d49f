"""What a step costs the host, piece by piece, with 256 and 1,024 requests decoding: no model, no device.

    python benchmarks/host_path.py --json host-path.json

The real scheduler, cache and frames around a runner that answers at once. In each step a 64th of the sequences crosses
into a new block. Times are medians over the steps, in microseconds; the slowest hundredth is shown too.
The peer's numbers are shares of a profile of vLLM 0.25.1 (SmolLM2-135M on an H100, 256 requests, 7.97 ms a step):
Scheduler.schedule 42%, Scheduler.update_from_output 15%, on a machine with other cores than this one.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shoal.model_worker.engine import to_frame
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.messages import decode_report, encode
from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import FcfsPolicy, Scheduler, SchedulerConfig
from shoal.model_worker.step import StepPlan, StepResult

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results

BLOCK_SIZE = 64
PROMPT_LEN = 128
VLLM_US = {("schedule", 256): 0.42 * 7970, ("update", 256): 0.15 * 7970}


class Stopwatch:
    """Microseconds of named pieces of each step."""

    def __init__(self) -> None:
        self.pieces: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def time(self, piece: str) -> Iterator[None]:
        """Times a block."""
        start = time.perf_counter()
        yield
        self.pieces[piece].append((time.perf_counter() - start) * 1e6)


def answer(plan: StepPlan) -> StepResult:
    """A token for everyone, at once."""
    slots = plan.slots[plan.samples]
    return StepResult(slots, np.full(len(slots), 7, np.int32), {}, {})


def measure(num_requests: int, num_steps: int) -> dict[str, list[float]]:
    """Microseconds of each piece of each step while all decode."""
    cache = KVCacheManager(num_requests * (-(-(PROMPT_LEN + num_steps + BLOCK_SIZE) // BLOCK_SIZE) + 1), BLOCK_SIZE)
    config = SchedulerConfig(num_requests, 8192, 4096, num_requests, 1 << 24)
    scheduler = Scheduler(config, cache, FcfsPolicy())
    randomness = random.Random(0)
    sampling = SamplingParams(temperature=0.0, max_tokens=4096 - 2 * PROMPT_LEN, ignore_eos=True)
    for stream_id in range(num_requests):
        length = PROMPT_LEN + stream_id % BLOCK_SIZE  # so that block boundaries spread over the steps
        prompt = tuple(randomness.randrange(50_000) for _ in range(length))
        request = Request(stream_id, f"r{stream_id}", prompt, sampling, 0, bytes(16), time.monotonic())
        scheduler.add(request)
    while True:
        plan = scheduler.schedule()
        assert plan is not None
        scheduler.update(plan, answer(plan))
        scheduler.take_output()
        if len(plan.slots) == plan.total_tokens == num_requests:
            break
    watch = Stopwatch()
    gc.collect()
    gc.freeze()
    for _ in range(num_steps):
        with watch.time("schedule"):
            plan = scheduler.schedule()
        assert plan is not None
        result = answer(plan)
        with watch.time("update"):
            scheduler.update(plan, result)
        with watch.time("frame"):
            frame = to_frame(scheduler.take_output(), cache.take_events(), scheduler.stats, 0.0, num_requests)
        with watch.time("encode"):
            body = encode(frame)
        with watch.time("decode, in the front"):
            decode_report(body)
    return watch.pieces


def to_rows(pieces: dict[str, list[float]], num_requests: int) -> list[Row]:
    """Medians, and the slowest hundredth."""
    rows = []
    for piece, times in pieces.items():
        peer = VLLM_US.get((piece, num_requests))
        median = statistics.median(times)
        name = f"{piece}, {num_requests} requests"
        rows.append(Row(name, round(median, 1), "us", peer, None if peer is None else round(peer / median, 1)))
        slowest = statistics.quantiles(times, n=100)[-1]
        rows.append(Row(f"{name}, slowest hundredth", round(slowest, 1), "us", None, None))
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="steps measured (default: 500)")
    parser.add_argument("--json", type=Path, help="write rows and their circumstances here")
    options = parser.parse_args()
    rows = [row for count in (256, 1024) for row in to_rows(measure(count, options.steps), count)]
    for row in rows:
        beside = "" if row.peer is None else f"   vLLM about {row.peer:,.0f} us"
        print(f"{row.name:50} {row.value:10.1f} {row.unit}{beside}")
    if options.json is not None:
        write_results(options.json, rows, {"steps": options.steps, "block_size": BLOCK_SIZE}, benchmark="host_path")


if __name__ == "__main__":
    main()
