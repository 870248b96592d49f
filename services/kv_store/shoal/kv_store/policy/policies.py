"""The policies by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from shoal.kv_store.policy.arc import Arc
from shoal.kv_store.policy.lru import Lru
from shoal.kv_store.policy.native_adaptive import NativeAdaptive, NativeBuildError
from shoal.kv_store.policy.policy import Policy
from shoal.kv_store.policy.python_adaptive import PythonAdaptive
from shoal.kv_store.policy.s3_fifo import S3Fifo


def adaptive(num_blocks: int) -> NativeAdaptive | PythonAdaptive:
    """For a tier with room for about `num_blocks`; in C where there is a compiler."""
    try:
        return NativeAdaptive(num_blocks)
    except NativeBuildError:
        return PythonAdaptive(num_blocks)


POLICIES: Final[Mapping[str, Callable[[int], Policy]]] = MappingProxyType(
    {
        "adaptive": adaptive,
        "arc": lambda num_blocks: Arc(),
        "lru": lambda num_blocks: Lru(),
        "s3_fifo": lambda num_blocks: S3Fifo(),
    }
)
"""Each takes the number of blocks that there is room for, about."""
DEFAULT_POLICY: Final = "adaptive"


def make_policy(name: str, capacity_bytes: int, block_bytes: int) -> Policy:
    """The policy of a pool of equal blocks. Raises ValueError naming the known ones."""
    if name not in POLICIES:
        raise ValueError(f"no eviction policy is called {name!r}; there are {', '.join(sorted(POLICIES))}")
    return POLICIES[name](max(math.floor(capacity_bytes / block_bytes), 1))
