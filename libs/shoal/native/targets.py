"""Kinds of processors that libraries are compiled for ahead of time, in images: those that the C sources tell apart.

What a compiler does for the very processor at hand (`-march=native`) differs from the best kind that fits in what the
sources do not ask for.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Target:
    """One kind."""

    name: str
    flags: tuple[str, ...]
    """Of gcc and clang."""
    features: frozenset[str]
    """What such a processor has, in the words of /proc/cpuinfo."""


_V2: Final = frozenset(["cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"])
_V3: Final = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4: Final = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_FOLDING: Final = _V4 | {"pclmulqdq", "vpclmulqdq"}
TARGETS: Final[Mapping[str, Sequence[Target]]] = {
    "x86_64": (
        Target(
            "x86-64-v4-bf16",
            ("-march=x86-64-v4", "-mpclmul", "-mvpclmulqdq", "-mavx512bf16"),
            _FOLDING | {"avx512_bf16"},
        ),
        Target("x86-64-v4-vpclmul", ("-march=x86-64-v4", "-mpclmul", "-mvpclmulqdq"), _FOLDING),
        Target("x86-64-v4", ("-march=x86-64-v4",), _V4),
        Target("x86-64-v3", ("-march=x86-64-v3",), _V3),
        Target("x86-64-v2", ("-march=x86-64-v2",), _V2),
    ),
    "aarch64": (
        Target("armv8-a-crc", ("-march=armv8-a+crc",), frozenset({"crc32"})),
        Target("armv8-a", ("-march=armv8-a",), frozenset()),
    ),
}
"""By machine, as `platform.machine` names it; the best kind first."""


def targets_of_machine() -> Sequence[Target]:
    """All kinds that this machine's compiler can compile for."""
    return TARGETS.get(platform.machine(), ())


def fitting(features: frozenset[str]) -> list[Target]:
    """Those that a processor of this machine's architecture with these features can run, the best first."""
    return [target for target in targets_of_machine() if target.features <= features]


def cpu_features() -> frozenset[str]:
    """Of the processor at hand; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())
