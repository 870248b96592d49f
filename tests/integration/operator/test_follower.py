"""The follower keeps a gateway's lists of endpoints as the discovery service tells them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from envoy_data_plane.envoy.config.core.v3 import Address, Pipe
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints
from envoy_data_plane.envoy.config.endpoint.v3 import Endpoint as EnvoyEndpoint

from shoal.operator.envoy import Endpoint, EnvoyOptions, clusters, endpoints_file, render_resources
from shoal.operator.envoy.config import eds_file, render
from shoal.operator.follower.following import endpoints_of
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.xds import encode
from support.control_plane_running import ControlPlane
from support.eventually import eventually

SERVICE = "default/test"
A, B = Endpoint("10.0.0.1", 50051), Endpoint("fd00::2", 50051)


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    with PortReservations() as ports:
        plane = ControlPlane(Endpoint("127.0.0.1", ports.reserve("control-plane")))
        await plane.start()
        yield plane
        await plane.stop()


@pytest.fixture
async def follower(control: ControlPlane, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = (
        f"--control-plane={control.address}",
        f"--service-cluster={SERVICE}",
        "--service-node=gateway-0",
        f"--folder={tmp_path}",
        f"--clusters={clusters.WORKER},{clusters.GATEWAY_PEERS}",
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "shoal.operator.follower", *arguments)
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


def publish(control: ControlPlane, workers: list[Endpoint], peers: list[Endpoint]) -> None:
    somewhere = Endpoint("127.0.0.1", 1)
    options = EnvoyOptions(
        node_id="x", run_dir="/run", admin_socket="/run/admin", edge=somewhere, mesh=somewhere, num_workers=2
    )
    endpoints = {clusters.WORKER: workers, clusters.GATEWAY_PEERS: peers}
    control.store.put(SERVICE, encode(render_resources(options, endpoints)))


async def until_written(folder: Path, cluster: str, endpoints: list[Endpoint]) -> None:
    path, wanted = folder / eds_file(cluster), render(endpoints_file(cluster, endpoints))
    await eventually(lambda: path.exists() and path.read_text() == wanted, f"{path.name} has {endpoints}")


async def test_files_follow(control: ControlPlane, follower: asyncio.subprocess.Process, tmp_path: Path) -> None:
    publish(control, [A], [B])
    await until_written(tmp_path, clusters.WORKER, [A])
    await until_written(tmp_path, clusters.GATEWAY_PEERS, [B])
    assert control.store.nodes(SERVICE) == ("gateway-0/follower",)
    publish(control, [A, B], [])
    await until_written(tmp_path, clusters.WORKER, [A, B])
    await until_written(tmp_path, clusters.GATEWAY_PEERS, [])
    await control.stop()
    publish(control, [B], [])
    await control.start()
    await until_written(tmp_path, clusters.WORKER, [B])
    follower.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(follower.wait(), 15) == 0
    assert not control.store.rejections(SERVICE)


def test_an_address_that_is_no_sockets_is_refused() -> None:
    pipe = LbEndpoint(endpoint=EnvoyEndpoint(address=Address(pipe=Pipe(path="/x"))))
    assignment = ClusterLoadAssignment(cluster_name="worker", endpoints=[LocalityLbEndpoints(lb_endpoints=[pipe])])
    with pytest.raises(ValueError, match="'worker' has an endpoint without address and port"):
        endpoints_of(assignment)
