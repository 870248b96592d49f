"""A whole mesh as `shoal up` runs it, on simulated workers that take their time, to be killed at will."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import yaml

from shoal.operator.api import parse_manifest
from shoal.operator.substrate import LocalMesh, SupervisorOptions
from support.eventually import eventually
from support.shoal_up import manifest

QUICK = SupervisorOptions(probe_interval_s=0.05, health_interval_s=0.2, first_backoff_s=0.05, max_backoff_s=0.2)


@asynccontextmanager
async def slow_mesh(log_dir: Path, *, num_workers: int, num_gateways: int, step_ms: float) -> AsyncIterator[LocalMesh]:
    """Serves. step_ms: from one token to the next."""
    document = manifest(
        workers={"replicas": num_workers, "device": "simulated", "simulated": {"stepMilliseconds": step_ms}},
        gateway={"replicas": num_gateways},
    )
    service = parse_manifest(yaml.safe_dump(document), "slow")

    async with LocalMesh(service, handle_signals=False, log_dir=log_dir, options=QUICK) as mesh:
        yield mesh


async def kill(mesh: LocalMesh, name: str) -> None:
    """SIGKILL to a process of the mesh; returns once the supervisor knows."""
    keeper = mesh.supervisor.keepers[name]
    pid = keeper.pid
    assert pid is not None
    psutil.Process(pid).kill()
    await eventually(lambda: keeper.pid != pid, f"{name} is gone")


async def wait_ready(mesh: LocalMesh, *names: str) -> None:
    """Returns once they are ready again."""
    keepers = [mesh.supervisor.keepers[name] for name in names]
    await eventually(lambda: all(keeper.is_ready for keeper in keepers), f"{names} are ready", timeout_s=60)
