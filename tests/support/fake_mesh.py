"""A LocalMesh of fake programs behind a real Envoy.

python fake_mesh.py FOLDER        (run as a program: prints one JSON line when up, then waits for signals)
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import struct
import sys
from pathlib import Path

import psutil

from shoal.operator.api import InferenceService, parse_manifest
from shoal.operator.planner import LocalPlan, Observed, ProcessPlan, Readiness, ReadinessKind, plan
from shoal.operator.substrate import LocalMesh, SupervisorOptions
from shoal.operator.substrate.local import Planner

PROGRAM = Path(__file__).with_name("fake_process.py")
FAST = SupervisorOptions(
    probe_interval_s=0.02, health_interval_s=0.05, first_backoff_s=0.02, max_backoff_s=0.2, hang_timeout_s=1.0
)


def make_service(folder: Path, **gateway: int) -> InferenceService:
    """A service whose model is a file without any tensor in `folder`."""
    model = folder / "model.gguf"
    model.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    text = f"""
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {{name: fake}}
spec:
  model: {{name: fake, uri: {model}}}
  kvCache: {{memory: 1Mi}}
  gateway: {json.dumps(gateway)}
"""
    return parse_manifest(text, "fake")


def fake_process(name: str, port: int, record: Path, *options: str, **changes: object) -> ProcessPlan:
    """A plan for `fake_process.py`; `changes` are fields of ProcessPlan."""
    process = ProcessPlan(
        name=name,
        component=name.partition("-")[0],
        argv=(sys.executable, "-S", str(PROGRAM), str(port), str(record), name, *options),
        readiness=Readiness(kind=ReadinessKind.HTTP, target=f"127.0.0.1:{port}", deadline_s=20.0),
        drain_timeout_s=10.0,
    )
    return dataclasses.replace(process, **changes)  # type: ignore[arg-type]


def plan_fakes(record: Path, *worker_options: str) -> Planner:
    """A planner that puts fake programs in the place of the Python services; Envoy stays real."""

    def plan_fake(service: InferenceService, observed: Observed) -> LocalPlan:
        real = plan(service, observed)
        processes = [
            process
            if process.name == "envoy"
            else fake_process(
                process.name,
                process.ports["grpc"],
                record,
                *(worker_options if process.component == "worker" else ()),
                depends_on=process.depends_on,
            )
            for process in real.processes
        ]
        return dataclasses.replace(real, processes=tuple(processes))

    return plan_fake


def is_running(process: psutil.Process) -> bool:
    """Whether it still is; a zombie that nobody has collected is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def main() -> None:
    """See the module's docstring."""
    folder = Path(sys.argv[1])
    mesh = LocalMesh(make_service(folder), options=FAST, planner=plan_fakes(folder / "record", *sys.argv[2:]))
    async with mesh:
        pids = {name: keeper.pid for name, keeper in mesh.supervisor.keepers.items()}
        print(json.dumps({"pids": pids, "run_dir": str(mesh.run_dir), "edge": mesh.plan.edge.port}), flush=True)
        await mesh.wait()


if __name__ == "__main__":
    asyncio.run(main())
