"""`shoal-operator` as a process: it serves, it dies at any moment, and another one goes on."""

from __future__ import annotations

import asyncio
import datetime
import json
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.operator.envoy import Endpoint
from shoal.operator.follower.following import METHOD, Follower
from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import collection_path, object_path
from shoal.operator.reconcile.reconciler import SERVICE_KIND
from shoal.operator.webhook.certificates import issue
from support.control_plane.cluster import ControlPlane
from support.eventually import eventually
from support.logged_process import LoggedProcess
from support.manifests import MINIMAL_ON_KUBERNETES, with_fields
from support.operator_running import Namespace
from support.stub_envoy import stub_envoy

pytestmark = pytest.mark.cluster
SLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
NUM_MOVES = 100


@pytest.fixture
def space(control_plane: ControlPlane, namespace: str) -> Namespace:
    return Namespace(control_plane, namespace)


@asynccontextmanager
async def operator(space: Namespace, *more: str) -> AsyncIterator[LoggedProcess]:
    flags = (f"--kubeconfig={space.plane.kubeconfig}", f"--namespaces={space.name}", "--log-format=json")
    async with await LoggedProcess.launch("shoal.operator.main", *flags, *more) as process:
        await process.wait_logged("watching")
        yield process


async def routes(space: Namespace) -> dict[str, Any]:
    conditions = (await space.service("smol"))["status"]["conditions"]
    return next(dict(condition) for condition in conditions if condition["type"] == "RoutesProgrammed")


async def until_routes(space: Namespace, status: str, message: str) -> None:
    async def is_so() -> bool:
        found = await routes(space)
        return found["status"] == status and message in found["message"]

    await eventually(is_so, f"RoutesProgrammed is {status}: {message}", 30)


async def test_it_serves_and_drains(space: Namespace) -> None:
    async with operator(space) as process:
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        followed: list[tuple[str, Sequence[Endpoint]]] = []
        async with grpc.aio.insecure_channel(process.address) as channel:
            follower = Follower(
                channel, (f"{space.name}/smol", "test"), ["worker"], lambda *told: followed.append(told)
            )
            following = asyncio.ensure_future(follower.run())
            await eventually(lambda: bool(followed), "a follower is told of the worker")
            [worker] = await space.list(Kind("v1", "Pod", "pods"), "app.kubernetes.io/component=worker")
            assert followed[-1] == ("worker", [Endpoint(worker["status"]["podIP"], 50051)])

            assert (await routes(space))["reason"] == "NoEnvoys", "a follower is none"
            async with stub_envoy(process.address, f"{space.name}/smol", "test"):
                await until_routes(space, "True", "1 Envoys have accepted")
            following.cancel()
        process.signal(signal.SIGTERM)
        assert await process.wait_ended() == 0, process.logs[-8:]


async def test_with_a_certificate_nothing_is_told_without(space: Namespace, tmp_path: Path) -> None:
    issued = issue(["127.0.0.1"], datetime.datetime.now(datetime.UTC))
    for name, content in (("tls.crt", issued.certificate), ("tls.key", issued.key), ("ca.crt", issued.ca_bundle)):
        (tmp_path / name).write_bytes(content)
    flags = [f"--tls-certificate={tmp_path}/tls.crt", f"--tls-key={tmp_path}/tls.key", "--tls-port=0"]
    async with operator(space, *flags, f"--control-plane-ca={tmp_path}/ca.crt") as process:
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        config = (await space.objects("smol"))["ConfigMap", "smol-gateway"]["data"]
        assert config["control-plane-ca.crt"] == issued.ca_bundle.decode()
        followed: list[Sequence[Endpoint]] = []
        node = (f"{space.name}/smol", "test")
        credentials = grpc.ssl_channel_credentials(issued.ca_bundle)
        address = process.logged("serving by TLS")["address"]
        async with grpc.aio.secure_channel(address, credentials) as channel:
            follower = Follower(channel, node, ["worker"], lambda _, endpoints: followed.append(endpoints))
            following = asyncio.ensure_future(follower.run())
            await eventually(lambda: bool(followed), "who trusts it is told")
            following.cancel()
        async with grpc.aio.insecure_channel(process.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(channel.stream_stream(METHOD, bytes, bytes)(iter([b""]))))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            health = health_pb2_grpc.HealthStub(channel)
            assert (
                await health.Check(health_pb2.HealthCheckRequest())
            ).status == health_pb2.HealthCheckResponse.SERVING


async def test_what_an_envoy_refuses_is_told_whichever_operator_it_is_connected_to(space: Namespace) -> None:
    service, why = f"{space.name}/smol", "malformed IP address: not-an-ip"
    flags = f"--lease-namespace={space.name}"
    async with operator(space, flags, "--identity=one") as writer, operator(space, flags, "--identity=two") as other:
        await writer.wait_logged("leading")
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        async with (
            stub_envoy(writer.address, service, "gateway-0"),
            stub_envoy(other.address, service, "gateway-1", rejects=why) as refusing,
        ):
            await until_routes(space, "False", why)
            lines = await asyncio.to_thread(space.plane.kubectl, "get", "isvc", "-n", space.name)
            assert "Degraded" in lines, lines
            assert why in lines, lines
            await refusing.reconsider()
            await until_routes(space, "True", "2 Envoys have accepted")


async def test_envoys_hear_of_pods_within_milliseconds(space: Namespace) -> None:
    """From the API server's answer to a changed EndpointSlice until the change has come over the wire."""
    async with operator(space) as process, grpc.aio.insecure_channel(process.address) as channel:
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {}))
        await space.until_phase("smol", "Ready")
        told: asyncio.Queue[tuple[float, Sequence[Endpoint]]] = asyncio.Queue()
        follower = Follower(
            channel, (f"{space.name}/smol", "test"), ["worker"], lambda _, all: told.put_nowait((time.monotonic(), all))
        )
        following = asyncio.ensure_future(follower.run())
        await told.get()
        [original] = await space.list(SLICE, "kubernetes.io/service-name=smol-worker")
        mine = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "moving", "labels": original["metadata"]["labels"]},
            "addressType": "IPv4",
            "ports": original["ports"],
            "endpoints": [{"addresses": ["10.9.0.1"], "conditions": {"ready": True}}],
        }
        mine["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = "test"
        await space.call("POST", collection_path(SLICE, space.name), mine)
        await told.get()
        delays_s = []
        for index in range(NUM_MOVES):
            address = f"10.9.{index // 250}.{2 + index % 250}"
            change: dict[str, Any] = {"endpoints": [{"addresses": [address], "conditions": {"ready": True}}]}
            await space.patch(SLICE, "moving", change)
            answered_s = time.monotonic()
            told_s, endpoints = await asyncio.wait_for(told.get(), 10)
            assert Endpoint(address, 50051) in endpoints
            delays_s.append(told_s - answered_s)
        following.cancel()
        delays_s.sort()
        p50_ms, p99_ms = (1000 * delays_s[int(part * NUM_MOVES) - 1] for part in (0.5, 0.99))
        print(f"EndpointSlice -> follower: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms")
        # Ten times what is promised: this machine has other things to do.
        assert p99_ms < 1000


async def test_another_process_goes_on_where_one_was_killed(space: Namespace) -> None:
    async with operator(space) as process:
        await space.create(with_fields(MINIMAL_ON_KUBERNETES, {"spec.workers": {"replicas": 2}}))
        process.signal(signal.SIGKILL)  # somewhere in its first reconcile, or before it
    await space.patch(SERVICE_KIND, "smol", {"spec": {"workers": {"replicas": 3}}})
    async with operator(space):
        status = await space.until_phase("smol", "Ready")
        assert status["workers"] == {"desired": 3, "ready": 3, "current": 3}


async def test_without_an_api_server_it_says_so(tmp_path: Any) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}],
                "users": [{"name": "x", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "current-context": "x",
            }
        )
    )
    async with await LoggedProcess.launch(
        "shoal.operator.main", f"--kubeconfig={kubeconfig}", "--log-format=json"
    ) as process:
        assert await process.wait_ended() == 1
        assert "http://127.0.0.1:9 cannot be reached" in process.logged("cannot run")["error"]
    assert object_path(STATEFUL_SET, "a", "b") == "/apis/apps/v1/namespaces/a/statefulsets/b"
