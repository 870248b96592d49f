"""What the gateways' own metrics say of the workers' caches: whether KV events flow, and whether they are true. Pure.

Gateways check that themselves (ADR 0012): a worker whose events stop counts as one without a cache, and predicted cache
hits are counted beside the actual ones. The operator reads it where Prometheus does, which takes no rights on the
cluster and nothing of the gateways' event loops.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shoal.operator.api.status import ConditionState

_STALE: Final = "shoal_gateway_workers_without_kv_events"
_AGE_S: Final = "shoal_gateway_kv_event_age_seconds"
_PREDICTED: Final = "shoal_gateway_worker_predicted_cached_tokens_total"
_CACHED: Final = "shoal_gateway_worker_cached_tokens_total"
_LINE: Final = re.compile(
    rf"^({_STALE}|{_AGE_S}|{_PREDICTED}|{_CACHED})(?:\{{worker=\"([^\"\\]*)\"\}})? ([0-9.eE+-]+)$", re.MULTILINE
)
_MIN_PREDICTED_TOKENS: Final = 16_384
"""Fewer say nothing: one long prompt whose blocks were evicted meanwhile is none of anybody's faults."""
_MIN_TRUE_SHARE: Final = 0.5
_MAX_NAMED: Final = 3
_MAX_COUNT: Final = 1e18


@dataclass(frozen=True, slots=True)
class Reading:
    """One gateway's metrics at one moment. Tokens are counted since that gateway started."""

    num_stale: int = 0
    """Workers whose events stopped."""
    ages_s: Mapping[str, float] = field(default_factory=dict)
    """Worker -> since its last message; each worker whose events are followed."""
    predicted_tokens: Mapping[str, float] = field(default_factory=dict)
    cached_tokens: Mapping[str, float] = field(default_factory=dict)

    @property
    def stale(self) -> tuple[tuple[str, float], ...]:
        """Those workers, the longest silent ones first, with their ages."""
        by_age = sorted(self.ages_s.items(), key=lambda item: (-item[1], item[0]))
        return tuple(by_age[: self.num_stale])


@dataclass(frozen=True, slots=True)
class CachesState:
    """As a condition."""

    status: ConditionState = "Unknown"
    reason: str = "NotObserved"
    message: str = "no gateway was asked yet"


def parse_reading(text: str) -> Reading:
    """From the text of a gateway's `/metrics`. What is not there is nothing: another version may not count it. Raises
    ValueError for numbers that are none, or that nothing can be counted with."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, worker, value in _LINE.findall(text):
        number = float(value)
        if not 0 <= number <= _MAX_COUNT:
            raise ValueError(f"{name} is {value}")
        found[name][worker] = number
    return Reading(
        num_stale=int(found[_STALE].get("", 0)),
        ages_s=found[_AGE_S],
        predicted_tokens=found[_PREDICTED],
        cached_tokens=found[_CACHED],
    )


def judge_caches(readings: Mapping[str, Sequence[Reading]], unreachable: Mapping[str, str]) -> CachesState:
    """By gateway pod its readings, oldest first, and why the others could not be read.

    A worker counts as silent after two readings in a row: one that has just started is about to be heard.
    """
    silent = [(pod, worker) for pod, of_pod in sorted(readings.items()) for worker in _silent_workers(of_pod)]
    if silent:
        return CachesState("False", "EventsStopped", _say_silent(silent, num_gateways=len(readings)))
    untrue = sorted(_untrue_workers(readings.values()))
    if untrue:
        return CachesState("False", "HitsNotAsPredicted", _say_untrue(untrue))
    if unreachable:
        pod, why = min(unreachable.items())
        more = f" (and {len(unreachable) - 1} more)" if len(unreachable) > 1 else ""
        return CachesState("Unknown", "GatewaysUnreachable", f"{pod}{more} does not say: {why}")
    followed = {pod: of_pod[-1].ages_s for pod, of_pod in readings.items() if of_pod}
    if not any(followed.values()):
        return CachesState("Unknown", "NotObserved", "no gateway follows a worker's KV events yet")
    workers = {worker for ages in followed.values() for worker in ages}
    text = f"{_count(len(followed), 'gateway')} told by {_count(len(workers), 'worker')} what is in their caches"
    return CachesState("True", "Flowing", text)


def _silent_workers(of_pod: Sequence[Reading]) -> Iterator[str]:
    """Of one gateway."""
    if len(of_pod) < 2:
        return
    before = dict(of_pod[-2].stale)
    yield from (worker for worker, _ in of_pod[-1].stale if worker in before)


def _untrue_workers(readings: Iterable[Sequence[Reading]]) -> Iterator[tuple[str, float]]:
    """Worker, and how much of what was predicted to be cached there was, over all gateways and the whole window."""
    predicted: defaultdict[str, float] = defaultdict(float)
    cached: defaultdict[str, float] = defaultdict(float)
    for of_pod in readings:
        if len(of_pod) < 2:
            continue
        first, last = of_pod[0], of_pod[-1]
        for worker, tokens in last.predicted_tokens.items():
            predicted[worker] += tokens - first.predicted_tokens.get(worker, 0.0)
            cached[worker] += last.cached_tokens.get(worker, 0.0) - first.cached_tokens.get(worker, 0.0)
    for worker, tokens in predicted.items():
        if tokens >= _MIN_PREDICTED_TOKENS and cached[worker] < _MIN_TRUE_SHARE * tokens:
            yield worker, cached[worker] / tokens


def _say_silent(silent: Sequence[tuple[str, str]], num_gateways: int) -> str:
    named = "; ".join(f"{pod} hears nothing of {worker}" for pod, worker in silent[:_MAX_NAMED])
    more = f"; and {len(silent) - _MAX_NAMED} more" if len(silent) > _MAX_NAMED else ""
    of = f"at {len({pod for pod, _ in silent})} of {_count(num_gateways, 'gateway')}"
    return f"KV events stopped {of}, which pick as if those caches were empty: {named}{more}; look at the workers' logs"


def _say_untrue(untrue: Sequence[tuple[str, float]]) -> str:
    """In parts, not in tokens: a message that changes with every look is written to the cluster every time."""
    named = "; ".join(f"{worker} had {share:.0%}" for worker, share in untrue[:_MAX_NAMED])
    return (
        f"caches hold less than their events said, so requests go where little is saved: of the tokens that were "
        f"predicted to be cached {named}; raise spec.kvCache.memory if blocks are evicted, else restart those workers"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
