"""What happens to the mesh. Each fault ends with its target healthy again, or raises TimeoutError."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

import psutil

from chaos_parts.mesh import STALL_S, ChaosMesh, send

Fault = Callable[[ChaosMesh, str, Random], Awaitable[None]]


async def kill_worker(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """SIGKILL to both processes of a worker at once."""
    await mesh.end(name, signal.SIGKILL, mesh.family(name))


async def kill_engine(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """SIGKILL to the engine alone: the front tells its clients, and ends."""
    await mesh.end(name, signal.SIGKILL, mesh.family(name)[1:])


async def stop_worker(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """SIGSTOP to front, engine or both, for longer than the stall limit or not; then SIGCONT."""
    family = mesh.family(name)
    await _stop(draw.choice([family, family[:1], family[1:]]) or family, draw.uniform(0.2, 3) * STALL_S)
    await mesh.wait_ready(name)


async def drain_worker(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """SIGTERM: it hands its streams over and ends."""
    await mesh.end(name, signal.SIGTERM, mesh.family(name)[:1])


async def refuse_worker(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """A partition whose connections break and are refused."""
    forwarder = mesh.forwarders[name]
    forwarder.refuse()
    try:
        await asyncio.sleep(draw.uniform(0.1, 2) * STALL_S)
    finally:
        await forwarder.start()


async def swallow_worker(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """A partition that swallows: connections stay, and nothing passes."""
    forwarder = mesh.forwarders[name]
    forwarder.swallow()
    try:
        await asyncio.sleep(draw.uniform(0.2, 3) * STALL_S)
    finally:
        forwarder.flow()


async def kill_edge(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """SIGKILL to a gateway or to Envoy."""
    await mesh.end(name, signal.SIGKILL, mesh.family(name))


async def drain_edge(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """SIGTERM to a gateway or to Envoy."""
    await mesh.end(name, signal.SIGTERM, mesh.family(name)[:1])


async def stop_edge(mesh: ChaosMesh, name: str, draw: Random) -> None:
    """SIGSTOP to a gateway or to Envoy, then SIGCONT."""
    await _stop(mesh.family(name)[:1], draw.uniform(0.2, 2) * STALL_S)
    await mesh.wait_ready(name)


async def _stop(processes: list[psutil.Process], seconds: float) -> None:
    send(processes, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        send(processes, signal.SIGCONT)


DEADLY: Final[tuple[Fault, ...]] = (kill_worker, kill_engine, drain_worker)
"""Faults that end a worker."""
WORKER_FAULTS: Final[tuple[Fault, ...]] = (*DEADLY, stop_worker, refuse_worker, swallow_worker)
EDGE_FAULTS: Final[tuple[Fault, ...]] = (kill_edge, drain_edge, stop_edge)
"""Of gateways and of Envoy."""
