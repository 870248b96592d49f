"""Discovery by TLS: a real Envoy and a follower that trust the operator's authority, and strangers that do not."""

from __future__ import annotations

import asyncio
import datetime
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from shoal.operator.envoy import Endpoint, clusters, render_resources
from shoal.operator.envoy.config import eds_file
from shoal.operator.substrate.ports import PortReservations
from shoal.operator.webhook.certificates import Issued, issue
from shoal.operator.xds import DiscoveryServer, SnapshotStore, encode
from shoal.operator.xds.secure import serving_securely
from shoal.rpc.server import Registration, ServerOptions, start_server
from support.envoy_running import envoy_options, envoy_process
from support.eventually import eventually

SERVICE = "default/test"
WORKER = Endpoint("10.0.0.1", 50051)
LISTENING = ServerOptions("127.0.0.1", 0, drain_timeout_s=0)
NOW = datetime.datetime.now(datetime.UTC)


def write(folder: Path, issued: Issued) -> tuple[Path, Path]:
    """As a Secret is mounted."""
    files = folder / "tls.crt", folder / "tls.key"
    for path, content in zip(files, (issued.certificate, issued.key), strict=True):
        path.write_bytes(content)
    return files


async def test_envoy_and_follower_are_told_by_whom_they_trust(tmp_path: Path) -> None:
    issued = issue(["127.0.0.1"], NOW)
    authority = tmp_path / "ca.crt"
    authority.write_bytes(issued.ca_bundle)
    store = SnapshotStore()
    with PortReservations() as ports:
        files = write(tmp_path, issued)
        async with serving_securely(DiscoveryServer(store), LISTENING, *files) as port:
            address = Endpoint("127.0.0.1", port)
            (tmp_path / "run").mkdir()
            options = envoy_options(
                tmp_path / "run",
                ports,
                node_cluster=SERVICE,
                control_plane=address,
                control_plane_ca=issued.ca_bundle.decode(),
            )
            store.put(SERVICE, encode(render_resources(options, {clusters.WORKER: [WORKER]})))
            arguments = (
                f"--control-plane={address}",
                f"--control-plane-ca={authority}",
                f"--service-cluster={SERVICE}",
                "--service-node=gateway-0",
                f"--folder={tmp_path}",
            )
            follower = await asyncio.create_subprocess_exec(sys.executable, "-m", "shoal.operator.follower", *arguments)
            try:
                async with envoy_process(options):  # live once it has been told of its clusters
                    assert "test" in store.nodes(SERVICE)
                written = tmp_path / eds_file(clusters.WORKER)
                await eventually(lambda: written.exists() and "10.0.0.1" in written.read_text(), "the follower is told")
            finally:
                follower.kill()
                await follower.wait()


async def test_a_renewed_certificate_is_served_and_strangers_are_refused(tmp_path: Path) -> None:
    first, second = issue(["127.0.0.1"], NOW), issue(["127.0.0.1"], NOW)
    files = write(tmp_path, first)
    async with serving_securely(DiscoveryServer(SnapshotStore()), LISTENING, *files) as port:
        assert await trusts(port, first)
        assert not await trusts(port, second)
        write(tmp_path, second)
        assert await trusts(port, second)
        assert not await trusts(port, first)


async def trusts(port: int, issued: Issued) -> bool:
    """Whether somebody who trusts that authority can connect."""
    credentials = grpc.ssl_channel_credentials(issued.ca_bundle)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        state = channel.get_state(try_to_connect=True)
        while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            await asyncio.wait_for(channel.wait_for_state_change(state), 10)
            state = channel.get_state()
        return state is grpc.ChannelConnectivity.READY


async def test_what_is_no_certificate_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tls\.crt"):
        async with serving_securely(DiscoveryServer(SnapshotStore()), LISTENING, tmp_path / "tls.crt", tmp_path / "x"):
            pass


@asynccontextmanager
async def serving(
    by_tls: bool, discovery: DiscoveryServer, listening: ServerOptions, folder: Path
) -> AsyncIterator[list[str]]:
    """The follower's flags that lead there."""
    if by_tls:
        issued = issue(["127.0.0.1"], NOW)
        authority = folder / "ca.crt"
        authority.write_bytes(issued.ca_bundle)
        async with serving_securely(discovery, listening, *write(folder, issued)) as port:
            yield [f"--control-plane=127.0.0.1:{port}", f"--control-plane-ca={authority}"]
    else:
        added = Registration(lambda _, server: discovery.add_to(server), discovery, SERVICE)
        server = await start_server(listening, [added])
        yield [f"--control-plane=127.0.0.1:{server.port}"]
        await server.stop(0)


@pytest.mark.parametrize("by_tls", [False, True])
async def test_who_gives_no_sign_of_life_is_connected_no_more(by_tls: bool, tmp_path: Path) -> None:
    """A node without power closes nothing."""
    store = SnapshotStore()
    listening = replace(LISTENING, keepalive_s=0.3)
    async with serving(by_tls, DiscoveryServer(store), listening, tmp_path) as where:
        arguments = (*where, f"--service-cluster={SERVICE}", "--service-node=gateway-0", f"--folder={tmp_path}")
        follower = await asyncio.create_subprocess_exec(sys.executable, "-m", "shoal.operator.follower", *arguments)
        try:
            await eventually(lambda: store.nodes(SERVICE) == ("gateway-0/follower",), "it is connected")
            follower.send_signal(signal.SIGSTOP)
            await eventually(lambda: store.nodes(SERVICE) == (), "it counts no more", 10)
        finally:
            follower.kill()
            await follower.wait()


@pytest.mark.exhaustive
async def test_clients_may_ask_for_signs_of_life(tmp_path: Path) -> None:
    """Servers end connections of who asks too often, and by default that is four times in five minutes."""
    store = SnapshotStore()
    joined: list[str] = []
    store.joined = lambda cluster, node, is_envoy=True: joined.append(node)  # type: ignore[method-assign, misc]
    store.left = lambda cluster, node: joined.append("left")  # type: ignore[method-assign]
    async with serving(True, DiscoveryServer(store), LISTENING, tmp_path) as where:
        arguments = (*where, f"--service-cluster={SERVICE}", "--service-node=gateway-0", f"--folder={tmp_path}")
        follower = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "shoal.operator.follower", *arguments, "--keepalive-s=5.5"
        )
        try:
            await eventually(lambda: joined == ["gateway-0/follower"], "it is connected")
            with pytest.raises(AssertionError, match="not within"):
                await eventually(lambda: len(joined) > 1, "it is sent away", 30)
        finally:
            follower.kill()
            await follower.wait()
