"""One trace under several policies, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast, get_args

import numpy as np

from shoal.gateway.routing.policies import PolicyName, policy_of
from shoal.rpc.errors import InvalidArgument
from shoal.simulator.mesh import MeshRun, MeshSettings, VirtualMesh
from shoal.simulator.oracle import oracle_hit_tokens
from shoal.simulator.trace import TraceRequest

POLICY_NAMES: Final[tuple[PolicyName, ...]] = get_args(PolicyName)
OnProgress = Callable[[str, int], None]
"""(policy, requests that ended so far)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """A row of the table, over requests without an error. What the numbers mean is in the package's docstring."""

    policy: str
    hit_ratio: float
    predicted_hit_ratio: float
    """What the router expected when it picked."""
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    e2e_mean_s: float
    tpot_mean_s: float
    """Time for each output token after the first, mean over requests with two and more."""
    requests: int
    errors: int
    busy: float
    """Part of the time until the last arrival that workers computed anything."""
    preemptions: int
    moves: int
    """Of requests, by choice."""
    picks: dict[str, int]
    """By the policy's reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows, and what none of them can pass."""

    oracle_hit_ratio: float
    speedup: float
    load: float | None
    """Rate of arrivals over the rate at which the workers take in the whole trace at once; None if it was not asked."""
    results: list[PolicyResult]


def parse_policies(text: str) -> tuple[PolicyName, ...]:
    """`a,b,c`, or `all`. Raises InvalidArgument."""
    names = POLICY_NAMES if text.strip() == "all" else tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in POLICY_NAMES:
            raise InvalidArgument("policies", f"{name!r} is no policy; give all, or some of {', '.join(POLICY_NAMES)}")
    return cast(tuple[PolicyName, ...], tuple(dict.fromkeys(names)))


def compare(
    trace: Sequence[TraceRequest],
    policies: Sequence[PolicyName],
    settings: MeshSettings,
    *,
    load: float | None = None,
    on_progress: OnProgress = lambda policy, num_done: None,
) -> Comparison:
    """Runs every policy. `load` chooses the speedup, in place of `settings.speedup`."""
    gpu = settings.gpu
    hits = oracle_hit_tokens(trace, num_blocks=gpu.num_blocks * settings.num_workers, block_size=gpu.block_size)
    oracle_hit_ratio = sum(hits) / sum(request.input_length for request in trace)
    if load is not None:
        settings = replace(settings, speedup=load * saturating_speedup(trace, settings, on_progress))
    results = []
    for name in policies:
        mesh = VirtualMesh(trace, policy_of(name), settings)
        results.append(summarize(name, mesh.run(lambda num_done, name=name: on_progress(name, num_done))))  # type: ignore[misc]
    return Comparison(oracle_hit_ratio=oracle_hit_ratio, speedup=settings.speedup, load=load, results=results)


def saturating_speedup(trace: Sequence[TraceRequest], settings: MeshSettings, on_progress: OnProgress) -> float:
    """The speedup at which requests arrive as fast as the workers could serve them, spread by load alone.

    Served at once, the trace takes as long as the slowest worker; its own duration over that is the answer.
    """
    duration_s = (trace[-1].timestamp - trace[0].timestamp) / 1e3
    if not duration_s > 0:
        raise InvalidArgument("load", "all requests of this trace arrive at once, so their rate cannot be chosen")
    mesh = VirtualMesh(trace, policy_of("least_load"), replace(settings, speedup=math.inf, rebalance=False))
    run = mesh.run(lambda num_done: on_progress("saturation", num_done))
    return duration_s / max(record.end_s for record in run.records)


def summarize(policy: str, run: MeshRun) -> PolicyResult:
    """A run as a row."""
    good = [record for record in run.records if record.error is None]
    num_prompt_tokens = max(1, sum(record.num_prompt_tokens for record in good))
    ttft_s = np.array([record.first_token_s - record.arrival_s for record in good] or [math.nan])
    e2e_s = np.array([record.end_s - record.arrival_s for record in good] or [math.nan])
    tpot_s = [(r.end_s - r.first_token_s) / (r.num_output_tokens - 1) for r in good if r.num_output_tokens > 1]
    return PolicyResult(
        policy=policy,
        hit_ratio=sum(record.num_hit_tokens for record in good) / num_prompt_tokens,
        predicted_hit_ratio=sum(record.num_predicted_hit_tokens for record in good) / num_prompt_tokens,
        ttft_mean_s=float(ttft_s.mean()),
        ttft_p50_s=float(np.percentile(ttft_s, 50)),
        ttft_p90_s=float(np.percentile(ttft_s, 90)),
        e2e_mean_s=float(e2e_s.mean()),
        tpot_mean_s=float(np.mean(tpot_s)) if tpot_s else math.nan,
        requests=len(run.records),
        errors=len(run.records) - len(good),
        busy=run.busy,
        preemptions=run.num_preemptions,
        moves=run.num_moves,
        picks=run.picks,
    )
