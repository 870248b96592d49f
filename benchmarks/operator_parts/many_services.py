"""Many InferenceServices: what they cost the operator, from nothing to ready, and when another operator takes over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil

from rows import Row
from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import collection_path, object_path
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from support.control_plane.binaries import find_binaries
from support.control_plane.cluster import ControlPlane, running_control_plane
from support.logged_process import LoggedProcess
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace

_BAR_S = 60.0
_SERVICES_A_NODE = 16
_PATIENCE_S = 900.0
_POLL_S = 1.0
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")


async def measure_services(number: int) -> list[Row]:
    """CPU time of the operator's process, all threads, as the kernel counts it. The rest of the machine is the control
    plane's, which takes longer than the operator."""
    num_nodes = number // _SERVICES_A_NODE + 2
    with running_control_plane(
        find_binaries(), definitions=[custom_resource_definition()], num_nodes=num_nodes
    ) as plane:
        space = Namespace(plane, "default")
        async with _operator(plane) as (process, cpu_s):
            idle_s = cpu_s()
            started_s = time.monotonic()
            await _create(space, number)
            await _until_ready(space, number)
            wall_s, first_s = time.monotonic() - started_s, cpu_s() - idle_s
            before_s = cpu_s()
            await _change_all(space, number)
            change_s = cpu_s() - before_s
            memory_mib = psutil.Process(process.process.pid).memory_info().rss / 2**20
        last = (await space.list(SERVICE_KIND))[-1]["metadata"]["name"]
        await space.patch(STATEFUL_SET, f"{last}-worker", {"spec": {"replicas": 5}})
        async with _operator(plane) as (_, cpu_s):
            await _until_put_right(space, f"{last}-worker")
            restart_s = cpu_s()
    return [
        _row(f"{number} services to ready", first_s, _BAR_S * number / 500),
        _row(f"{number} services to ready, per service", first_s / number * 1000, None, "cpu ms"),
        _row(f"{number} services scaled from 1 to 2 workers", change_s, None),
        _row(f"{number} services taken over by another operator", restart_s, None),
        Row(f"{number} services to ready, time", wall_s, "s", None, None),
        Row(f"{number} services, memory", memory_mib, "MiB", None, None),
    ]


def _row(name: str, value: float, bar: float | None, unit: str = "cpu s") -> Row:
    return Row(name, value, unit, bar, None if bar is None else bar / value)


@asynccontextmanager
async def _operator(plane: ControlPlane) -> AsyncIterator[tuple[LoggedProcess, Callable[[], float]]]:
    """The process, and how much CPU time it has used so far."""
    flags = (f"--kubeconfig={plane.kubeconfig}", "--log-format=json")
    async with await LoggedProcess.launch("shoal.operator.main", *flags) as process:
        watched = psutil.Process(process.process.pid)

        def cpu_s() -> float:
            times = watched.cpu_times()
            return float(times.user + times.system)

        await process.wait_logged("watching")
        yield process, cpu_s


async def _create(space: Namespace, number: int) -> None:
    path = collection_path(SERVICE_KIND, space.name)
    for index in range(number):
        # The made-up nodes have 64 cores.
        fields = {"metadata.name": f"smol-{index}", "spec.workers": {"resources": {"cpu": "100m"}}}
        await space.call("POST", path, with_fields(MINIMAL_ON_KUBERNETES, fields))


async def _until_ready(space: Namespace, number: int, workers: int = 1) -> None:
    """All of them, of the newest generation."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        found = await space.list(SERVICE_KIND)
        ready = [item for item in found if _is_ready(item, workers)]
        if len(ready) == number:
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{len(ready)} of {number} services are ready after {_PATIENCE_S} s")
        await asyncio.sleep(_POLL_S)


def _is_ready(item: dict[str, Any], workers: int) -> bool:
    status = item.get("status", {})
    is_seen = status.get("observedGeneration") == item["metadata"]["generation"]
    found = {name: status.get("workers", {}).get(name) for name in ("desired", "ready")}
    return is_seen and status.get("phase") == "Ready" and found == {"desired": workers, "ready": workers}


async def _change_all(space: Namespace, number: int) -> None:
    for index in range(number):
        await space.patch(SERVICE_KIND, f"smol-{index}", {"spec": {"workers": {"replicas": 2}}})
    await _until_ready(space, number, workers=2)


async def _until_put_right(space: Namespace, name: str) -> None:
    """What nobody saw while no operator ran: of the service that is looked at last."""
    path = object_path(STATEFUL_SET, space.name, name)
    deadline_s = time.monotonic() + _PATIENCE_S
    while (await space.call("GET", path))["spec"]["replicas"] != 2:
        if time.monotonic() > deadline_s:
            raise TimeoutError("the second operator has not come so far")
        await asyncio.sleep(_POLL_S)
