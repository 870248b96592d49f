"""Looks at the machine, with the limits of the container it may be."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from shoal.operator.api import Machine

_CGROUP = Path("/sys/fs/cgroup")


def observe_machine(cgroup: Path = _CGROUP) -> Machine:
    """Cores and memory that this process may use."""
    return Machine(num_cores=_count_cores(cgroup), memory_bytes=_measure_memory(cgroup))


def _count_cores(cgroup: Path) -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)


def _measure_memory(cgroup: Path) -> int:
    total = int(psutil.virtual_memory().total)
    limit = _read(cgroup / "memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
