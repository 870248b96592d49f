"""Records to numbers. Definitions are in the package docstring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.client.bench.records import Record


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of one metric, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one run. A distribution is None when nothing was measured."""

    duration_s: float
    completed: int
    errors: Mapping[str, int]
    """By code."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_s: Distribution | None
    itl_s: Distribution | None
    tpot_s: Distribution | None
    e2e_s: Distribution | None
    goodput_requests_per_s: float | None
    """None without objectives."""


def distribution(values: Iterable[float | None]) -> Distribution | None:
    """Mean and percentiles of the values that are there; None if there are none."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return None
    p50, p90, p99 = (float(p) for p in np.percentile(known, (50, 90, 99)))
    return Distribution(float(known.mean()), p50, p90, p99, int(known.size))


def summarize(records: Sequence[Record], slo: Mapping[str, float] | None = None) -> Summary:
    """The numbers of a run. `slo` maps ttft, itl, tpot and e2e to limits in seconds."""
    good = [record for record in records if record.error_code is None]
    duration_s = max((r.end_s for r in records), default=0.0) - min((r.start_s for r in records), default=0.0)
    prompt_tokens, output_tokens = sum(r.prompt_tokens for r in good), sum(r.output_tokens for r in good)

    def rate(amount: int) -> float:
        return amount / duration_s if duration_s > 0 else 0.0

    return Summary(
        duration_s=duration_s,
        completed=len(good),
        errors=dict(Counter(r.error_code for r in records if r.error_code is not None)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cached_tokens=sum(r.cached_tokens for r in good),
        requests_per_s=rate(len(good)),
        output_tokens_per_s=rate(output_tokens),
        total_tokens_per_s=rate(prompt_tokens + output_tokens),
        ttft_s=distribution(r.ttft_s for r in good),
        itl_s=distribution(gap for r in good for gap in r.gaps_s),
        tpot_s=distribution(r.tpot_s for r in good),
        e2e_s=distribution(r.e2e_s for r in good),
        goodput_requests_per_s=rate(sum(meets(r, slo) for r in good)) if slo else None,
    )


def meets(record: Record, slo: Mapping[str, float]) -> bool:
    """Whether a request met every objective. One without the metric (a single token has no gap) meets it."""
    measured = {"ttft": record.ttft_s, "itl": record.itl_s, "tpot": record.tpot_s, "e2e": record.e2e_s}
    return all((value := measured[name]) is None or value <= limit_s for name, limit_s in slo.items())
