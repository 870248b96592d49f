"""The mesh that is hurt: what `shoal up` runs, with a forwarder before each worker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from chaos_parts.forwarder import Forwarder
from shoal.operator.api import InferenceService, parse_manifest
from shoal.operator.envoy import Endpoint, clusters
from shoal.operator.planner import LocalPlan, Observed, plan
from shoal.operator.substrate import LocalMesh, SupervisorOptions
from shoal.operator.substrate.keeper import Keeper

STALL_S = 2.0
"""Longest silence of a stream, first token included: pauses that should be noticed take longer."""
DRAIN_S = 1
READY_TIMEOUT_S = 60.0
# Processes come back quickly however often they died: the supervisor's patience is not what is tried here.
_OPTIONS = SupervisorOptions(health_interval_s=0.5, first_backoff_s=0.1, max_backoff_s=0.5)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the mesh."""

    model: Path
    """Only its tokenizer is used."""
    vocab_size: int
    num_workers: int = 3
    num_gateways: int = 2
    step_ms: float = 10.0


class ChaosMesh:
    """Made by `chaos_mesh`."""

    def __init__(self, mesh: LocalMesh, forwarders: dict[str, Forwarder]) -> None:
        self.mesh = mesh
        self.forwarders = forwarders
        """By worker."""

    def keeper(self, name: str) -> Keeper:
        """Who keeps a process running."""
        return self.mesh.supervisor.keepers[name]

    def names(self, component: str) -> list[str]:
        """Processes of one kind, such as "worker"."""
        return [name for name, keeper in self.mesh.supervisor.keepers.items() if keeper.plan.component == component]

    def family(self, name: str) -> list[psutil.Process]:
        """The process and its children (a worker's engine is one); nothing while it is between two lives."""
        pid = self.keeper(name).pid
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid is not None:
                process = psutil.Process(pid)
                return [process, *process.children(recursive=True)]
        return []

    async def end(self, name: str, how: signal.Signals, processes: Sequence[psutil.Process]) -> None:
        """Signals processes of `name` and returns when it is ready again, in another life."""
        pid = self.keeper(name).pid
        send(processes, how)
        await wait_until(lambda: self.keeper(name).pid != pid, f"{name} ends", READY_TIMEOUT_S)
        await self.wait_ready(name)

    async def wait_ready(self, name: str) -> None:
        """Returns when it serves."""
        await wait_until(lambda: self.keeper(name).is_ready, f"{name} is ready", READY_TIMEOUT_S)

    def metrics_url(self, name: str) -> str:
        """Where a process tells its metrics."""
        return f"http://127.0.0.1:{self.keeper(name).plan.ports['metrics']}/metrics"


def send(processes: Sequence[psutil.Process], how: signal.Signals) -> None:
    """Signals all that still live."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(how)


async def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Raises TimeoutError naming `what`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def chaos_mesh(sizes: Sizes, log_dir: Path | None) -> AsyncIterator[ChaosMesh]:
    """A mesh that serves."""
    forwarders = {f"worker-{number}": Forwarder() for number in range(sizes.num_workers)}
    try:
        for forwarder in forwarders.values():
            await forwarder.start()
        mesh = LocalMesh(
            _service(sizes),
            handle_signals=False,
            log_dir=log_dir,
            options=_OPTIONS,
            planner=lambda service, observed: _plan(service, observed, sizes, forwarders),
        )
        async with mesh:
            yield ChaosMesh(mesh, forwarders)
    finally:
        await asyncio.gather(*(forwarder.close() for forwarder in forwarders.values()))


def _service(sizes: Sizes) -> InferenceService:
    spec: dict[str, Any] = {
        "model": {"name": "chaos", "uri": f"file://{sizes.model.resolve()}"},
        "workers": {
            "replicas": sizes.num_workers,
            "device": "simulated",
            "simulated": {"stepMilliseconds": sizes.step_ms},
        },
        "kvCache": {"memory": "64Mi"},
        "gateway": {"replicas": sizes.num_gateways},
        "failover": {"streamStallSeconds": STALL_S, "firstTokenSeconds": STALL_S},
    }
    document = {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "chaos"},
        "spec": spec,
    }
    return parse_manifest(yaml.safe_dump(document), "chaos")


def _plan(service: InferenceService, observed: Observed, sizes: Sizes, forwarders: dict[str, Forwarder]) -> LocalPlan:
    """What `shoal up` plans, but that workers are found behind their forwarders, and that draining is quick.

    Gateways remember few requests, so that memory which grows is not their history.
    """
    real = plan(service, observed)
    more = {
        "worker": (f"--simulated-vocab-size={sizes.vocab_size}", f"--drain-timeout-s={DRAIN_S}"),
        "gateway": (f"--drain-timeout-s={DRAIN_S}", "--explain-requests=64"),
    }
    processes = []
    for process in real.processes:
        serves = dict(process.serves)
        if process.name in forwarders:
            forwarder = forwarders[process.name]
            forwarder.target_port = process.ports["grpc"]
            serves[clusters.WORKER] = Endpoint("127.0.0.1", forwarder.port)
        argv = (*process.argv, *more.get(process.component, ()))
        processes.append(dataclasses.replace(process, argv=argv, serves=serves))
    return dataclasses.replace(real, processes=tuple(processes))
