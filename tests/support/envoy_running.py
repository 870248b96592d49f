"""A real Envoy with the operator's configuration, for integration tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import grpc.aio
import msgspec

from shoal.operator.envoy import Endpoint, EnvoyOptions, find_envoy, render_files
from shoal.operator.substrate.membership import Membership
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.substrate.probes import http_get
from shoal.operator.substrate.run_dir import write_files
from shoal.operator.substrate.supervisor import read_healthy_hosts
from support.eventually import eventually


@dataclass
class RunningEnvoy:
    """An Envoy whose two listeners accept connections."""

    options: EnvoyOptions
    membership: Membership
    mesh: Any  # grpc.aio.Channel; its stubs ask for serializers, which raw bytes do without
    edge: Any

    async def join(self, members: Mapping[str, Sequence[Endpoint]]) -> None:
        """Adds endpoints and waits until Envoy's health checks have passed for them."""
        for cluster, endpoints in members.items():
            for endpoint in endpoints:
                self.membership.join({cluster: endpoint})
        wanted = {(cluster, str(endpoint)) for cluster, endpoints in members.items() for endpoint in endpoints}
        await eventually(lambda: self._all_healthy(wanted), f"Envoy finds {sorted(wanted)} healthy")

    async def _all_healthy(self, wanted: set[tuple[str, str]]) -> bool:
        return wanted <= await self.healthy_hosts()

    async def healthy_hosts(self) -> set[tuple[str, str]]:
        """(cluster, host:port) of those that get calls."""
        return await read_healthy_hosts(self.options.admin_socket, 5.0)

    async def admin(self, path: str) -> Any:
        """A JSON page of the admin interface."""
        status, body = await http_get(self.options.admin_socket, path, 5.0)
        assert status == 200, body
        return msgspec.json.decode(body)


@asynccontextmanager
async def running_envoy(
    run_dir: Path,
    *,
    num_workers: int = 3,
    balancing: Literal["orca", "prefix_hash"] = "orca",
    more_edges: bool = False,
    **changes: Any,
) -> AsyncIterator[RunningEnvoy]:
    """Starts Envoy with fast health checks and no endpoints. more_edges: ports for gRPC and HTTP alone as well."""
    with PortReservations() as ports:
        if more_edges:
            for name in ("edge_grpc", "edge_http"):
                changes[name] = Endpoint("127.0.0.1", ports.reserve(name))
        options = envoy_options(run_dir, ports, num_workers=num_workers, balancing=balancing, **changes)
        async with (
            envoy_process(options),
            grpc.aio.insecure_channel(str(options.mesh)) as mesh,
            grpc.aio.insecure_channel(str(options.edge)) as edge,
        ):
            yield RunningEnvoy(options, Membership(run_dir), mesh, edge)


def envoy_options(run_dir: Path, ports: PortReservations, **changes: Any) -> EnvoyOptions:
    """Of an Envoy on loopback, with fast health checks."""
    options = EnvoyOptions(
        node_id="test",
        run_dir=str(run_dir),
        admin_socket=f"{run_dir}/admin.sock",
        edge=Endpoint("127.0.0.1", ports.reserve("edge")),
        mesh=Endpoint("127.0.0.1", ports.reserve("mesh")),
        num_workers=3,
        grpc_health_interval_s=0.2,
        max_http_request_bytes=1000,
    )
    return replace(options, **changes)


@asynccontextmanager
async def envoy_process(options: EnvoyOptions) -> AsyncIterator[None]:
    """Runs Envoy until the end of the block; it is live at its beginning."""
    run_dir = Path(options.run_dir)
    write_files(run_dir, render_files(options, {}))
    arguments = ["-c", f"{run_dir}/envoy.json", "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
    process = await asyncio.create_subprocess_exec(str(find_envoy()), *arguments)
    try:
        await eventually(lambda: _is_live(options), "Envoy is live")
        yield
    finally:
        process.kill()
        await process.wait()


async def _is_live(options: EnvoyOptions) -> bool:
    try:
        status, _ = await http_get(options.admin_socket, "/ready", 5.0)
    except OSError:
        return False
    return status == 200
