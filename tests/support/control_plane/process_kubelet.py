"""A kubelet that runs pods as processes: the planned command lines, each pod with an address of its own.

For a network namespace whose loopback has the addresses of `POD_NETWORK`. There are no images and no mounts: paths of
the pod are replaced by folders of this machine in everything that a container is given. What is not looked at: rights,
resources, probes other than those of readiness.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shoal.operator.envoy import find_envoy
from shoal.operator.planner.plan import Readiness, ReadinessKind
from shoal.operator.substrate.probes import probe
from support.control_plane.cluster import ControlPlane

NODE: Final = "local"
POD_NETWORK: Final = "10.88.0.0/24"
_FIRST_ADDRESS: Final = 10
_INTERVAL_S: Final = 0.05
_GRPC_PORT: Final = 50051


@dataclass(frozen=True)
class _Probe:
    """How a container says that it is ready."""

    target: Readiness
    timeout_s: float
    max_failures: int


@dataclass
class _Pod:
    name: str
    address: str
    folder: Path
    probes: Sequence[_Probe]
    num_failures: int = 0
    """Looks in a row at which a container was not ready."""
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    is_ready: bool = False
    is_stopped: bool = False
    ending: asyncio.Task[None] | None = None


class ProcessKubelet:
    """Runs the pods of one namespace that the scheduler bound to `NODE`."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, model: Path) -> None:
        self._plane = plane
        self._pods_path = f"/api/v1/namespaces/{namespace}/pods"
        self._namespace = namespace
        self._folder = folder
        self._model = model
        # As a claim that earlier pods have filled: models, and what engines compile for this machine.
        self._cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"
        self._pods: dict[str, _Pod] = {}
        self.timeline: list[tuple[float, str, str]] = []
        """Monotonic seconds, pod, and what it became: started, ready, unready, ended."""
        self._addresses = (f"10.88.0.{number}" for number in itertools.count(_FIRST_ADDRESS))
        self._tokenizer = next(self._addresses)
        """Of the one tokenizer: gateways are told before it is there, since nothing here answers for its name."""

    async def run(self) -> None:
        """Until cancelled; then nothing is left."""
        try:
            while True:
                await self._sync()
                await asyncio.sleep(_INTERVAL_S)
        finally:
            for pod in self._pods.values():
                for process in pod.processes:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()

    async def _sync(self) -> None:
        found = (await self._call("GET", self._pods_path))["items"]
        to_look_at: list[tuple[Mapping[str, Any], _Pod]] = []
        for item in found:
            uid, metadata = item["metadata"]["uid"], item["metadata"]
            if item["spec"].get("nodeName") != NODE:
                continue
            if uid not in self._pods:
                self._pods[uid] = await self._start(item)
            pod = self._pods[uid]
            if metadata.get("deletionTimestamp") and pod.ending is None:
                pod.ending = asyncio.ensure_future(self._end(pod))
            elif pod.ending is None and not pod.is_stopped:
                to_look_at.append((item, pod))
        await asyncio.gather(*(self._report(item, pod) for item, pod in to_look_at))

    async def _start(self, item: Mapping[str, Any]) -> _Pod:
        name = item["metadata"]["name"]
        is_tokenizer = item["metadata"]["labels"]["app.kubernetes.io/component"] == "tokenizer"
        self._note(name, "started")
        address = self._tokenizer if is_tokenizer else next(self._addresses)
        # Pods of StatefulSets have the names of earlier ones.
        folder = self._folder / f"{name}-{item['metadata']['uid'][:8]}"
        pod = _Pod(name, address, folder, _probes(item["spec"], address))
        (pod.folder / "run" / "xds").mkdir(parents=True)
        (pod.folder / "run-kv").mkdir()
        for volume in item["spec"]["volumes"]:
            if "configMap" in volume:
                path = f"/api/v1/namespaces/{self._namespace}/configmaps/{volume['configMap']['name']}"
                for key, text in (await self._call("GET", path))["data"].items():
                    (pod.folder / key).write_text(text.replace("/run/shoal", str(pod.folder / "run")))
        for container in [*item["spec"].get("initContainers", ()), *item["spec"]["containers"]]:
            pod.processes.append(await self._launch(pod, container))
        return pod

    async def _launch(self, pod: _Pod, container: Mapping[str, Any]) -> asyncio.subprocess.Process:
        given = {entry["name"]: entry.get("value", pod.name) for entry in container["env"]}
        command = [self._translate(text, pod, given) for text in [*container["command"], *container.get("args", ())]]
        command[0] = {"python": sys.executable, "envoy": str(find_envoy())}[command[0]]
        environ = {
            **os.environ,
            **self._plane.processes.marker,
            **{name: self._translate(text, pod, given) for name, text in given.items()},
        }
        with (pod.folder / f"{container['name']}.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environ, process_group=0
            )

    def _translate(self, text: str, pod: _Pod, given: Mapping[str, str]) -> str:
        for name, value in given.items():
            text = text.replace(f"$({name})", value)
        if text.startswith("--model="):
            return f"--model={self._model}"
        if text.startswith("--tokenizer-address=dns:"):  # there is no DNS here
            return f"--tokenizer-address=ipv4:{self._tokenizer}:{_GRPC_PORT}"
        folders = {"/run/shoal": pod.folder / "run", "/etc/shoal/envoy": pod.folder, "/models": self._cache}
        for path, folder in folders.items():
            text = text.replace(path, str(folder))
        # Pods have loopbacks of their own; here there is one.
        return text.replace("=0.0.0.0", f"={pod.address}").replace("=127.0.0.1:50054", f"={pod.address}:50054")

    async def _report(self, item: Mapping[str, Any], pod: _Pod) -> None:
        found = await asyncio.gather(*(probe(each.target, each.timeout_s) for each in pod.probes))
        pod.num_failures = 0 if all(one.ready for one in found) else pod.num_failures + 1
        patience = min(each.max_failures for each in pod.probes) if pod.is_ready else 1
        is_ready = pod.num_failures < patience
        if is_ready == pod.is_ready and item["status"].get("podIP"):
            return
        if is_ready != pod.is_ready:
            self._note(pod.name, "ready" if is_ready else "unready")
        pod.is_ready = is_ready
        state = "True" if is_ready else "False"
        status = {
            "phase": "Running",
            "podIP": pod.address,
            "podIPs": [{"ip": pod.address}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                *({"type": name, "status": state} for name in ("Initialized", "ContainersReady", "Ready")),
            ],
        }
        path = f"{self._pods_path}/{pod.name}/status"
        await self._call("PATCH", path, {"status": status}, "application/merge-patch+json")

    async def _end(self, pod: _Pod) -> None:
        """SIGTERM to the service first; its sidecars end after it."""
        for process in reversed(pod.processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()
        self._note(pod.name, "ended")
        await self._call("DELETE", f"{self._pods_path}/{pod.name}", {"gracePeriodSeconds": 0})

    def stop(self, name: str) -> None:
        """The pod's processes stand still, and this kubelet has yet to find that out."""
        self._signal(name, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """They go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, signum: signal.Signals) -> None:
        [pod] = [pod for pod in self._pods.values() if pod.name == name and pod.ending is None]
        pod.is_stopped = signum is signal.SIGSTOP
        for process in pod.processes:
            os.killpg(process.pid, signum)

    def _note(self, pod: str, what: str) -> None:
        self.timeline.append((time.monotonic(), pod, what))

    async def _call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        data = None if body is None else json.dumps(body).encode()
        return await asyncio.to_thread(self._plane.request, method, path, data, content_type)

    def logs(self) -> str:
        """The end of what each container said."""
        names: Sequence[Path] = sorted(self._folder.glob("*/*.log"))
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-1500:]}" for path in names)


def _probes(spec: Mapping[str, Any], address: str) -> Sequence[_Probe]:
    """Of all containers, sidecars too."""
    found = []
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        probe = container.get("readinessProbe")
        if probe is None:
            continue
        if "grpc" in probe:
            target = Readiness(kind=ReadinessKind.GRPC_HEALTH, target=f"{address}:{probe['grpc']['port']}")
        else:
            http = probe["httpGet"]
            target = Readiness(kind=ReadinessKind.HTTP, target=f"{address}:{http['port']}", path=http["path"])
        found.append(_Probe(target, probe["timeoutSeconds"], probe["failureThreshold"]))
    return found


def node() -> dict[str, Any]:
    """Ready, and nobody's but this kubelet's."""
    resources = {"cpu": "64", "memory": "512Gi", "pods": "100"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Here", "message": "pods are processes"}],
        },
    }
