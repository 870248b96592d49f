"""What moving requests by choice gains and costs: a trace on 8 simulated H100s in virtual time, with and without.

    python benchmarks/rebalance_replay.py --trace conversations.jsonl.gz --json rebalance-replay.json

The numbers depend on nothing but the code: no clock is read. Each is the mean over four parts of the trace. `peer` is
the same without moves, and a ratio above 1 is better than that.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from rows import Row, write_results
from shoal.gateway.routing.policies import policy_of
from shoal.simulator.mesh import MeshRun, MeshSettings, VirtualMesh
from shoal.simulator.moving import Slowdown
from shoal.simulator.trace import TraceRequest, read_trace

NUM_WORKERS = 8
NUM_PARTS = 4
GRAIN_MS = 3000
"""The trace's times are multiples of it."""


@dataclass(frozen=True)
class Case:
    """What happens while a part of the trace is replayed."""

    name: str
    speedup: float
    """2.7 is 80% of saturation."""
    num_gateways: int = 1
    spread: bool = True
    """Whether arrivals are drawn within their grain of time, or come nine at a time."""
    slowness: float = 1.0
    slow_s: float = 0.0
    """For so long one worker after the other is so much slower."""
    pause_s: float = 0.0
    """Until it is the next one's turn."""


CASES = (
    Case("calm", 2.7),
    Case("four_gateways_arrivals_at_once", 2.7, num_gateways=4, spread=False),
    Case("standstill_15_s", 2.0, slowness=math.inf, slow_s=15.0, pause_s=5.0),
    Case("thousand_times_slower_15_s", 2.0, slowness=1000.0, slow_s=15.0, pause_s=5.0),
    Case("ten_times_slower_60_s", 2.0, slowness=10.0, slow_s=60.0, pause_s=20.0),
)


def part_of(trace: Sequence[TraceRequest], case: Case, part: int, num_requests: int) -> list[TraceRequest]:
    """Requests from some place of the trace on."""
    start = part * (len(trace) - num_requests) // NUM_PARTS
    found = trace[start : start + num_requests]
    randomness = random.Random(part)
    moved = [
        msgspec.structs.replace(
            request,
            timestamp=request.timestamp - found[0].timestamp + case.spread * randomness.random() * GRAIN_MS,
        )
        for request in found
    ]
    return sorted(moved, key=lambda request: request.timestamp)


def slowdowns(case: Case, until_s: float) -> tuple[Slowdown, ...]:
    """One worker after the other, until the last arrival."""
    turn_s = case.slow_s + case.pause_s
    if not turn_s:
        return ()
    starts = np.arange(0.15 * until_s, 0.9 * until_s, turn_s)
    return tuple(
        Slowdown(i % NUM_WORKERS, float(start), float(start) + case.slow_s, case.slowness)
        for i, start in enumerate(starts)
    )


def measures_of(run: MeshRun) -> dict[str, float]:
    """By name, seconds but for the last two."""
    assert not any(record.error for record in run.records)
    ttft_s = np.array([record.first_token_s - record.arrival_s for record in run.records])
    e2e_s = np.array([record.end_s - record.arrival_s for record in run.records])
    return {
        "ttft_mean_s": float(ttft_s.mean()),
        "ttft_p90_s": float(np.percentile(ttft_s, 90)),
        "ttft_p99_s": float(np.percentile(ttft_s, 99)),
        "e2e_mean_s": float(e2e_s.mean()),
        "e2e_p90_s": float(np.percentile(e2e_s, 90)),
        "e2e_p99_s": float(np.percentile(e2e_s, 99)),
        "hit_ratio": sum(r.num_hit_tokens for r in run.records) / sum(r.num_prompt_tokens for r in run.records),
        "moves": float(run.num_moves),
    }


def rows_of(case: Case, runs: dict[bool, list[dict[str, float]]]) -> list[Row]:
    """Means over the parts; in `runs`, by whether requests were moved."""
    rows = []
    for measure in runs[True][0]:
        moved, left = (float(np.mean([run[measure] for run in runs[is_on]])) for is_on in (True, False))
        name = f"{case.name}/{measure}"
        if measure == "moves":
            rows.append(Row(name, moved, "", None, None))
            continue
        better, worse = (moved, left) if measure == "hit_ratio" else (left, moved)
        unit = "" if measure == "hit_ratio" else "s"
        rows.append(Row(name, round(moved, 4), unit, round(left, 4), round(better / worse, 3)))
    return rows


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1500, help="Of each part.")
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    trace = read_trace(args.trace)
    rows: list[Row] = []
    for case in [case for case in CASES if case.name in args.cases.split(",")]:
        runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for part in range(NUM_PARTS):
            requests = part_of(trace, case, part, args.requests)
            until_s = requests[-1].timestamp / 1e3 / case.speedup
            settings = MeshSettings(
                num_workers=NUM_WORKERS,
                num_gateways=case.num_gateways,
                speedup=case.speedup,
                slowdowns=slowdowns(case, until_s),
            )
            for is_on, so_far in runs.items():
                mesh = VirtualMesh(requests, policy_of("shoal"), replace(settings, rebalance=is_on))
                so_far.append(measures_of(mesh.run()))
        found = rows_of(case, runs)
        rows += found
        for row in found:
            beside = "" if row.peer is None else f"  without {row.peer:9.4f}  ratio {row.ratio:.3f}"
            print(f"{row.name:45} {row.value:9.4f} {row.unit:1}{beside}", flush=True)
    if args.json is not None:
        write_results(args.json, rows, {"trace": args.trace.name, "requests": args.requests, "parts": NUM_PARTS})


if __name__ == "__main__":
    main()
