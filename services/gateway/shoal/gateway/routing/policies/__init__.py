"""The policies that an InferenceService can name, one family a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal

from shoal.gateway.routing.policies.baselines import LeastLoaded, RoundRobin
from shoal.gateway.routing.policies.envoy import LeaveToEnvoy
from shoal.gateway.routing.policies.least_cost import LeastCost
from shoal.gateway.routing.policies.overlap_cost import OverlapCost
from shoal.gateway.routing.policies.prefix_sticky import PrefixSticky
from shoal.gateway.routing.policy import Policy

PolicyName = Literal["shoal", "least_load", "round_robin", "prefix_sticky", "overlap_cost", "orca", "prefix_hash"]

PREFIX_HASH_TOKENS: Final = 1024
"""Longer than most system prompts that everybody shares, shorter than most conversations."""

_POLICIES: Final[Mapping[PolicyName, Callable[[], Policy]]] = MappingProxyType(
    {
        "shoal": LeastCost,
        "least_load": LeastLoaded,
        "round_robin": RoundRobin,
        "prefix_sticky": PrefixSticky,
        "overlap_cost": OverlapCost,
        "orca": lambda: LeaveToEnvoy("orca"),
        "prefix_hash": lambda: LeaveToEnvoy("prefix_hash", hash_tokens=PREFIX_HASH_TOKENS),
    }
)


def policy_of(name: PolicyName) -> Policy:
    """The policy that an InferenceService's `routing.policy` names."""
    return _POLICIES[name]()
