"""Routing policies on made-up traces that each stress one thing: 8 simulated H100s in virtual time.

    python benchmarks/replay_synthetic.py --json replay-synthetic.json

The numbers depend on nothing but the code: no clock is read. `peer` is the best of the other policies in the same
trace and measure, and a ratio above 1 is better than it.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rows import Row, write_results
from shoal.gateway.routing.policies import policy_of
from shoal.simulator.mesh import MeshSettings, VirtualMesh
from shoal.simulator.replay import POLICY_NAMES, PolicyResult, summarize
from shoal.simulator.trace import TRACE_BLOCK, TraceRequest

NUM_WORKERS = 8


class Prompts:
    """Draws prompts and times, always the same ones."""

    def __init__(self) -> None:
        self.random = random.Random(5)
        self._ids = itertools.count()

    def fresh(self, num_blocks: int) -> tuple[int, ...]:
        """Blocks that nobody else has."""
        return tuple(next(self._ids) for _ in range(num_blocks))

    def arrivals_ms(self, num: int, per_s: float) -> Iterator[float]:
        """A Poisson process."""
        return itertools.accumulate(self.random.expovariate(per_s) * 1e3 for _ in range(num))

    def request(self, time_ms: float, blocks: Sequence[int], outputs: tuple[int, int]) -> TraceRequest:
        """The last block is full to some part."""
        length = (len(blocks) - 1) * TRACE_BLOCK + self.random.randint(1, TRACE_BLOCK)
        return TraceRequest(time_ms, length, self.random.randint(*outputs), tuple(blocks))


def no_reuse(prompts: Prompts) -> list[TraceRequest]:
    """2,500 prompts of log-normal length, 12 a second."""
    draw = prompts.random.lognormvariate
    times = prompts.arrivals_ms(2500, 12)
    return [prompts.request(t, prompts.fresh(max(1, int(draw(2.5, 1)))), (20, 600)) for t in times]


def hot_prefix(prompts: Prompts) -> list[TraceRequest]:
    """One system prompt of 6,144 tokens for all, and a short question each: 45 a second."""
    prefix, draw = prompts.fresh(12), prompts.random.randint
    return [prompts.request(t, prefix + prompts.fresh(draw(1, 4)), (50, 400)) for t in prompts.arrivals_ms(3000, 45)]


def tenants(prompts: Prompts) -> list[TraceRequest]:
    """150 system prompts of 6,144 tokens with ten questions each and 1,000 tokens of output: 22 a second.

    After llm-d's test of its precise prefix cache (150 groups of five), twice as long.
    """
    prefixes = [prompts.fresh(12) for _ in range(150)]
    order = 10 * prefixes
    prompts.random.shuffle(order)
    times = prompts.arrivals_ms(len(order), 22)
    return [prompts.request(t, prefix + prompts.fresh(2), (1000, 1000)) for t, prefix in zip(times, order, strict=True)]


def bursts(prompts: Prompts) -> list[TraceRequest]:
    """16 prompts with one new prefix of 2k to 12k tokens at the same moment: 1.6 times a second."""
    trace = []
    for t in prompts.arrivals_ms(200, 1.6):
        prefix = prompts.fresh(prompts.random.randint(4, 23))
        trace += [prompts.request(t, prefix + prompts.fresh(1), (50, 300)) for _ in range(16)]
    return trace


TRACES: dict[str, Callable[[Prompts], list[TraceRequest]]] = {
    "no_reuse": no_reuse,
    "hot_prefix": hot_prefix,
    "150_tenants": tenants,
    "bursts_of_16": bursts,
}


def rows_of(trace: str, results: Sequence[PolicyResult]) -> list[Row]:
    """A row for each policy and measure."""
    rows = []
    for measure, unit in (("ttft_mean_s", "s"), ("ttft_p90_s", "s"), ("e2e_mean_s", "s"), ("hit_ratio", "")):
        for result in results:
            value = getattr(result, measure)
            others = [getattr(other, measure) for other in results if other is not result]
            peer = max(others) if measure == "hit_ratio" else min(others)
            better, worse = (value, peer) if measure == "hit_ratio" else (peer, value)
            ratio = round(better / worse, 2) if worse else None
            rows.append(Row(f"{trace}/{result.policy}/{measure}", round(value, 4), unit, round(peer, 4), ratio))
    return rows


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default=",".join(POLICY_NAMES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[Row] = []
    for name, make in TRACES.items():
        trace = make(Prompts())
        results = []
        for policy in args.policies.split(","):
            run = VirtualMesh(trace, policy_of(policy), MeshSettings(num_workers=NUM_WORKERS)).run()
            result = summarize(policy, run)
            results.append(result)
            times = f"TTFT {result.ttft_mean_s:8.3f} s  p90 {result.ttft_p90_s:8.3f} s  E2E {result.e2e_mean_s:8.3f} s"
            print(f"{name:14} {policy:14} hits {result.hit_ratio:6.1%}  {times}  errors {result.errors}", flush=True)
        rows += rows_of(name, results)
    if args.json is not None:
        write_results(args.json, rows, {"workers": NUM_WORKERS, "policies": args.policies})


if __name__ == "__main__":
    main()
