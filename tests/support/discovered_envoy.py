"""A real Envoy that is told everything by the operator's discovery server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import grpc.aio
import msgspec

from shoal.operator.envoy import Endpoint, EnvoyOptions, render_resources
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.substrate.probes import http_get
from shoal.operator.substrate.supervisor import read_healthy_hosts
from shoal.operator.xds import Snapshot, encode
from support.control_plane_running import ControlPlane
from support.envoy_running import envoy_options, envoy_process
from support.eventually import eventually

Protocol = Literal["DELTA_GRPC", "GRPC"]
CLUSTER = "default/test"


@dataclass
class DiscoveredEnvoy:
    """An Envoy that is live, though it may have nothing to do yet."""

    options: EnvoyOptions
    control: ControlPlane
    mesh: Any  # grpc.aio.Channel

    def publish(self, endpoints: Mapping[str, Sequence[Endpoint]], **changes: Any) -> Snapshot:
        """Tells it of these endpoints, and of changed options."""
        self.options = replace(self.options, **changes)
        snapshot = encode(render_resources(self.options, endpoints))
        self.control.store.put(CLUSTER, snapshot)
        return snapshot

    async def until_healthy(self, endpoints: Sequence[Endpoint]) -> None:
        """Waits until exactly these workers get calls."""
        wanted = {("worker", str(endpoint)) for endpoint in endpoints}

        async def is_so() -> bool:
            hosts = await read_healthy_hosts(self.options.admin_socket, 5.0)
            return {host for host in hosts if host[0] == "worker"} == wanted

        await eventually(is_so, f"Envoy has {sorted(wanted)}")

    async def admin(self, path: str) -> Any:
        """A JSON page of the admin interface."""
        status, body = await http_get(self.options.admin_socket, path, 5.0)
        assert status == 200, body
        return msgspec.json.decode(body)


@asynccontextmanager
async def discovered_envoy(run_dir: Path, protocol: Protocol) -> AsyncIterator[DiscoveredEnvoy]:
    """Starts both. Envoy is live only once it has been told what to do: at first, of clusters with nobody in them."""
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(PortReservations())
        control = ControlPlane(Endpoint("127.0.0.1", ports.reserve("control-plane")))
        await control.start()
        stack.push_async_callback(control.stop)
        changes = {"node_cluster": CLUSTER, "control_plane": control.address, "xds_protocol": protocol}
        options = envoy_options(run_dir, ports, **changes)
        control.store.put(CLUSTER, encode(render_resources(options, {})))
        await stack.enter_async_context(envoy_process(options))
        mesh = await stack.enter_async_context(grpc.aio.insecure_channel(str(options.mesh)))
        yield DiscoveredEnvoy(options, control, mesh)
