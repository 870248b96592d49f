"""What processes hold while nobody asks for anything."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from dataclasses import dataclass

from chaos_parts.mesh import ChaosMesh

IDLE_TIMEOUT_S = 30.0
MAX_GROWTH_MIB = 32.0
MAX_MORE_FILES = 12
"""Connections come and go: Envoy's threads and the gateways each keep some to every worker."""
_ZERO = {
    "worker": (
        "shoal_worker_num_requests_running",
        "shoal_worker_num_requests_waiting",
        "shoal_worker_kv_cache_used_blocks",
    ),
    "gateway": ("shoal_gateway_requests_in_flight", "shoal_gateway_queue_requests"),
}
"""Metrics that are zero, over all labels, when nothing is under way."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one process holds."""

    pid: int
    memory_mib: float
    """Resident."""
    num_files: int
    """Open file descriptors, sockets among them."""


async def holdings(mesh: ChaosMesh) -> dict[str, Held]:
    """Of all gateways and workers, engines included (`worker-0/1`)."""
    found = {}
    for component in ("gateway", "worker"):
        for name in mesh.names(component):
            for number, process in enumerate(mesh.family(name)):
                memory_mib = process.memory_info().rss / 2**20
                label = f"{name}/{number}" if number else name
                found[label] = Held(process.pid, round(memory_mib, 1), process.num_fds())
    return found


async def wait_idle(mesh: ChaosMesh) -> list[str]:
    """Waits until nothing is under way anywhere; what is left if that does not come."""
    left: list[str] = []
    for component in _ZERO:
        for name in mesh.names(component):
            busy: dict[str, float] = {}

            async def look(name: str = name, component: str = component) -> bool:
                nonlocal busy
                text = await asyncio.to_thread(_read, mesh.metrics_url(name))
                busy = {metric: value for metric in _ZERO[component] if (value := _total(text, metric))}
                return not busy

            deadline_s = time.monotonic() + IDLE_TIMEOUT_S
            while not await look() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - metrics have no event
                await asyncio.sleep(0.2)
            left += [f"{name}: {metric} is {value:g} though nobody asks" for metric, value in busy.items()]
    return left


def compare(before: dict[str, Held], after: dict[str, Held]) -> list[str]:
    """Leaks, for those processes that lived all the time."""
    leaks = []
    for name, then in before.items():
        now = after.get(name)
        if now is None or now.pid != then.pid:
            continue
        if now.memory_mib - then.memory_mib > MAX_GROWTH_MIB:
            leaks.append(f"{name}: {then.memory_mib:g} MiB grew to {now.memory_mib:g}")
        if now.num_files - then.num_files > MAX_MORE_FILES:
            leaks.append(f"{name}: {then.num_files} open files grew to {now.num_files}")
    return leaks


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read(4 << 20), "utf-8")


def _total(text: str, metric: str) -> float:
    lines = (line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == metric)
    return sum(float(line.rpartition(" ")[2]) for line in lines)
