"""Gateways' pods as processes: a real Envoy each, told by the operator's discovery server, and a gateway that answers
slowly. They end as kubelets end them: hooks and order are those of the plan."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from shoal.operator.envoy import Endpoint, EnvoyOptions, clusters, find_envoy, render_resources
from shoal.operator.envoy.config import bootstrap, render
from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.planner.kubernetes.envoy import RUN_DIR
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.substrate.supervisor import read_healthy_hosts
from shoal.operator.xds import encode
from support.control_plane_running import ControlPlane
from support.envoy_running import envoy_options
from support.eventually import eventually

NUM_MESSAGES: Final = 6
_PAUSE_S: Final = 0.05
_SERVICE: Final = "shoal.api.gateway.v1.GatewayService"
_GRACE_S: Final = 30.0


@dataclass
class SlowGateway:
    """Answers each request, gRPC or HTTP/1, with `NUM_MESSAGES` messages and a pause between."""

    grpc: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", 0))
    http: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", 0))
    _server: Any = None
    _http_server: Any = None
    _answering: set[asyncio.Task[Any]] = field(default_factory=set)

    async def start(self) -> None:
        """Healthy at once."""
        self._server = grpc.aio.server()
        handlers = {"Generate": grpc.unary_stream_rpc_method_handler(self._generate)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.grpc = Endpoint("127.0.0.1", self._server.add_insecure_port("127.0.0.1:0"))
        await self._server.start()
        self._http_server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.http = Endpoint("127.0.0.1", self._http_server.sockets[0].getsockname()[1])

    async def drain(self) -> None:
        """Takes nothing, and returns when the last answer is complete."""
        self._http_server.close()
        await self._server.stop(_GRACE_S)
        if self._answering:
            await asyncio.wait(self._answering, timeout=_GRACE_S)

    async def _generate(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(NUM_MESSAGES):
            yield b"token"
            await asyncio.sleep(_PAUSE_S)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")
                for _ in range(NUM_MESSAGES):
                    writer.write(b"5\r\ntoken\r\n")
                    await asyncio.sleep(_PAUSE_S)
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        finally:
            self._answering.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@dataclass
class GatewayPod:
    """One pod. `options`: of its Envoy; what its cluster is told is what all are told."""

    options: EnvoyOptions
    gateway: SlowGateway
    envoy: asyncio.subprocess.Process

    async def end(self, template: Manifest) -> None:
        """As a kubelet ends a pod: all preStop hooks at once, then the container, then sidecars from the last to the
        first, none of them before its hook is over."""
        sidecars = template["spec"]["initContainers"]
        hooks = {each["name"]: asyncio.ensure_future(self._stop_hook(each)) for each in sidecars}
        await self.gateway.drain()
        for sidecar in reversed(sidecars):
            await hooks[sidecar["name"]]
            if sidecar["name"] == "envoy":
                self.envoy.terminate()
                await self.envoy.wait()

    async def _stop_hook(self, container: Manifest) -> None:
        hook = container["lifecycle"]["preStop"]
        if "exec" not in hook:  # a pause for proxies; here they know at once
            return
        python, *arguments = hook["exec"]["command"]
        assert python == "python"
        own = [argument.replace(RUN_DIR, self.options.run_dir) for argument in arguments]
        process = await asyncio.create_subprocess_exec(sys.executable, *own, "--leave-s=0.2")
        assert await process.wait() == 0


@dataclass
class GatewayPods:
    """All of them, and the Service in front, whose connections stay with the pod that they were made to."""

    folder: Path
    control: ControlPlane
    ports: PortReservations
    address: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", 0))
    ready: list[GatewayPod] = field(default_factory=list)
    """Those that take new connections."""
    _all: list[GatewayPod] = field(default_factory=list)
    _forwarding: set[asyncio.Task[Any]] = field(default_factory=set)

    async def add(self) -> GatewayPod:
        """Starts one; returns when all Envoys have it."""
        name = f"pod-{len(self._all)}"
        run_dir = self.folder / name
        run_dir.mkdir()
        changes = {"node_id": name, "node_cluster": f"test/{name}", "control_plane": self.control.address}
        options = envoy_options(run_dir, self.ports, **changes)
        (run_dir / "envoy.json").write_text(render(bootstrap(options)))
        gateway = SlowGateway()
        await gateway.start()
        arguments = ["-c", f"{run_dir}/envoy.json", "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
        envoy = await asyncio.create_subprocess_exec(str(find_envoy()), *arguments)
        pod = GatewayPod(options, gateway, envoy)
        self._all.append(pod)
        self.ready.append(pod)
        self._publish()
        await eventually(lambda: self._all_know(gateway.grpc), f"all Envoys have {name}")
        return pod

    async def leave(self, pod: GatewayPod) -> None:
        """It terminates: no new connections, and no new requests once this returns. Pods have seconds for that."""
        self.ready.remove(pod)
        self._publish()
        await eventually(lambda: self._none_knows(pod.gateway.grpc), "all Envoys have forgotten the gateway")

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to any pod that is ready."""
        task = asyncio.current_task()
        assert task is not None
        self._forwarding.add(task)
        task.add_done_callback(self._forwarding.discard)
        edge = random.choice(self.ready).options.edge
        there_reader, there_writer = await asyncio.open_connection(edge.host, edge.port)
        await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))

    async def kill(self) -> None:
        """Whatever is left."""
        if self._forwarding:  # their clients are gone
            await asyncio.wait(self._forwarding, timeout=10)
        for pod in self._all:
            if pod.envoy.returncode is None:
                pod.envoy.kill()
                await pod.envoy.wait()
                await pod.gateway.drain()

    def _publish(self) -> None:
        endpoints = {
            clusters.GATEWAY_GRPC: [pod.gateway.grpc for pod in self.ready],
            clusters.GATEWAY_HTTP: [pod.gateway.http for pod in self.ready],
        }
        for pod in self._all:
            self.control.store.put(pod.options.node_cluster, encode(render_resources(pod.options, endpoints)))

    async def _none_knows(self, gateway: Endpoint) -> bool:
        unwanted = (clusters.GATEWAY_GRPC, str(gateway))
        running = [pod for pod in self._all if pod.envoy.returncode is None]
        return all([unwanted not in await read_healthy_hosts(pod.options.admin_socket, 5.0) for pod in running])

    async def _all_know(self, gateway: Endpoint) -> bool:
        wanted = (clusters.GATEWAY_GRPC, str(gateway))
        for pod in self.ready:
            try:
                if wanted not in await read_healthy_hosts(pod.options.admin_socket, 5.0):
                    return False
            except OSError:
                return False
        return True


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def gateway_pods(folder: Path, ports: PortReservations, num: int) -> AsyncIterator[GatewayPods]:
    """That many, and their Service."""
    control = ControlPlane(Endpoint("127.0.0.1", ports.reserve("control-plane")))
    await control.start()
    pods = GatewayPods(folder, control, ports)
    server = await asyncio.start_server(pods.forward, "127.0.0.1", 0)
    pods.address = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        for _ in range(num):
            await pods.add()
        yield pods
    finally:
        server.close()
        await pods.kill()
        await control.stop()
