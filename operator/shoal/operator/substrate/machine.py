"""Looks at the machine, with the limits of the container it may be."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping
from pathlib import Path

import psutil

from shoal.operator.api import Machine

_MAX_FILES = 1 << 16
_CGROUP = Path("/sys/fs/cgroup")
_DEVICES = Path("/dev")
_GPU_DEVICE = re.compile(r"nvidia\d+")


def observe_machine(
    cgroup: Path = _CGROUP, devices: Path = _DEVICES, environ: Mapping[str, str] = os.environ
) -> Machine:
    """Cores, memory and GPUs that this process may use."""
    return Machine(
        num_cores=_count_cores(cgroup), memory_bytes=_measure_memory(cgroup), gpus=_find_gpus(devices, environ)
    )


def raise_file_limit() -> int:
    """Lets this process, and those that it starts from now on, have as many open files as it may give itself, up to
    65,536; how many that are. Common is 1,024: every HTTP client is a connection to Envoy and one on to a gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(_MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def _find_gpus(devices: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What CUDA would count, without CUDA: the driver's device files, as far as CUDA_VISIBLE_DEVICES shows them.

    In a container only its own GPUs have files. Under WSL there is one file for all, which says no number.
    """
    try:
        names = [path.name for path in devices.iterdir()]
    except OSError:
        return ()
    num_gpus = sum(_GPU_DEVICE.fullmatch(name) is not None for name in names) or int("dxg" in names)
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return tuple(map(str, range(num_gpus)))
    gpus = [name.strip() for name in shown.split(",")]
    hidden_from = next((i for i, name in enumerate(gpus) if not name or name.startswith("-")), len(gpus))
    return tuple(gpus[:hidden_from]) if num_gpus else ()


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
