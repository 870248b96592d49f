"""From a changed EndpointSlice to Envoy acting on it: the first request at an added worker, the last at a removed one.

Everything is real but the workers, which answer with their names: etcd, API server, the operator's process, Envoy 1.40.
Run by operator_cluster.py, which starts it again in a network namespace: python -m operator_parts.envoy_moves NUMBER
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from operator_parts.network import enter_network, run_inside
from rows import Row
from shoal.operator.api.crd import custom_resource_definition
from shoal.operator.envoy import Endpoint
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import collection_path
from shoal.operator.substrate.ports import PortReservations
from support.control_plane.binaries import find_binaries
from support.control_plane.cluster import ControlPlane, running_control_plane
from support.envoy_running import envoy_options, envoy_process
from support.eventually import eventually
from support.fake_endpoints import GENERATE, serving
from support.logged_process import LoggedProcess
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace

_BAR_MS = 100.0
_TIMEOUT_S = 300.0
_OPERATOR = "10.88.0.1"
_STAYS, _MOVES = Endpoint("10.88.0.10", 50051), Endpoint("10.88.0.11", 50051)
_MESH = "127.0.0.1:9901"
_SLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
_NUM_CALLERS = 2
_REST_S = 0.02
# Between one caller's requests: how finely is measured. Without it the callers keep Envoy and operator off the cores.
_PACE_S = 0.002


def measure_moves(number: int) -> list[Row]:
    """Two rows for each direction: p50 and p99, in milliseconds from the API server's answer."""
    [found] = run_inside("operator_parts.envoy_moves", str(number), timeout_s=_TIMEOUT_S)
    rows = []
    for what in ("added", "removed"):
        delays_ms = sorted(found[what])
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            value = delays_ms[math.ceil(part * len(delays_ms)) - 1]
            bar = _BAR_MS if name == "p99" else None
            ratio = None if bar is None else bar / max(value, 1e-3)
            rows.append(Row(f"EndpointSlice to Envoy, worker {what}, {name}", value, "ms", bar, ratio))
    return rows


class Callers:
    """Ask for the moving worker first and take what Envoy gives, one request after the other."""

    def __init__(self, channel: Any) -> None:
        self._call = channel.unary_stream(GENERATE)
        self._answers: list[tuple[float, str]] = []
        """When a request was sent, and who answered it."""

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(*(self._ask() for _ in range(_NUM_CALLERS)))

    async def _ask(self) -> None:
        metadata = (("x-shoal-endpoint", f"{_MOVES},{_STAYS}"),)
        while True:
            sent_s = time.monotonic()
            try:
                messages = [message async for message in self._call(b"", metadata=metadata, timeout=10)]
            except grpc.aio.AioRpcError:  # Envoy has not been told of its listener yet
                await asyncio.sleep(_REST_S)
                continue
            self._answers.append((sent_s, bytes(messages[0]).decode()))
            await asyncio.sleep(_PACE_S)

    async def until(self, wanted: str) -> None:
        """Until each of the last requests was answered by that worker."""
        self._answers.clear()

        def is_so() -> bool:
            last = [name for _, name in self._answers[-3 * _NUM_CALLERS :]]
            return len(last) == 3 * _NUM_CALLERS and set(last) == {wanted}

        await eventually(is_so, f"{wanted} answers", 20)

    def first_sent(self, after_s: float, name: str) -> float:
        """When the first request was sent that `name` answered."""
        return min(sent_s for sent_s, answered in self._answers if answered == name and sent_s >= after_s - 1)

    def last_sent(self, name: str, default_s: float) -> float:
        """When the last one was sent."""
        return max((sent_s for sent_s, answered in self._answers if answered == name), default=default_s)


async def _measure(plane: ControlPlane, folder: Path, number: int) -> dict[str, list[float]]:
    space = Namespace(plane, "default")
    async with AsyncExitStack() as stack:
        for name, endpoint in (("stays", _STAYS), ("moves", _MOVES)):
            await stack.enter_async_context(serving(name, endpoint.port, host=endpoint.host))
        flags = (f"--kubeconfig={plane.kubeconfig}", f"--host={_OPERATOR}", "--log-format=json")
        operator = await stack.enter_async_context(await LoggedProcess.launch("shoal.operator.main", *flags))
        await operator.wait_logged("watching")
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        host, _, port = operator.address.rpartition(":")
        ports = stack.enter_context(PortReservations())
        options = envoy_options(
            folder, ports, node_cluster="default/smol", control_plane=Endpoint(host, int(port)), num_workers=2
        )
        await stack.enter_async_context(envoy_process(options))
        move = await _make_slice(space)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(_MESH))
        callers = Callers(channel)
        calling = asyncio.ensure_future(callers.run())
        stack.callback(calling.cancel)
        return await _move(number, move, callers)


async def _make_slice(space: Namespace) -> Callable[[bool], Any]:
    """One beside those of the Service's own controller; how to add the moving worker to it, or take it away."""

    async def is_there() -> bool:
        return bool(await space.list(_SLICE, "kubernetes.io/service-name=smol-worker"))

    await eventually(is_there, "the operator has made the Service")
    [original] = await space.list(_SLICE, "kubernetes.io/service-name=smol-worker")
    labels = {**original["metadata"]["labels"], "endpointslice.kubernetes.io/managed-by": "benchmark"}
    body = {
        "apiVersion": _SLICE.api_version,
        "kind": _SLICE.kind,
        "metadata": {"name": "moving", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": 50051, "protocol": "TCP"}],
        "endpoints": [_endpoint(_STAYS)],
    }
    await space.call("POST", collection_path(_SLICE, space.name), body)

    async def move(is_added: bool) -> None:
        endpoints = [_endpoint(_STAYS), *([_endpoint(_MOVES)] if is_added else [])]
        await space.patch(_SLICE, "moving", {"endpoints": endpoints})

    return move


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {"addresses": [endpoint.host], "conditions": {"ready": True}}


async def _move(number: int, move: Callable[[bool], Any], callers: Callers) -> dict[str, list[float]]:
    delays_ms: dict[str, list[float]] = {"added": [], "removed": []}
    await callers.until("stays")
    for _ in range(number):
        await move(True)
        answered_s = time.monotonic()
        await callers.until("moves")
        first_s = callers.first_sent(answered_s, "moves")
        delays_ms["added"].append(max(0.0, first_s - answered_s) * 1000)
        await asyncio.sleep(_REST_S)
        await move(False)
        answered_s = time.monotonic()
        await callers.until("stays")
        last_s = callers.last_sent("moves", answered_s)
        delays_ms["removed"].append(max(0.0, last_s - answered_s) * 1000)
        await asyncio.sleep(_REST_S)
    return delays_ms


def main() -> None:
    """Inside the namespace."""
    enter_network()
    with (
        running_control_plane(find_binaries(), definitions=[custom_resource_definition()], num_nodes=0) as plane,
        tempfile.TemporaryDirectory() as folder,
    ):
        print(json.dumps(asyncio.run(_measure(plane, Path(folder), int(sys.argv[1])))))


if __name__ == "__main__":
    main()
