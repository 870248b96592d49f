"""A whole gateway in the test's own event loop, in front of fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import msgspec

from shoal.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from shoal.gateway.config import Config
from shoal.gateway.process import Gateway
from support.eventually import eventually
from support.fake_tokenizer import FakeTokenizer
from support.fake_worker import FakeWorker, serve_fakes

GENERATE = "/shoal.api.gateway.v1.GatewayService/Generate"


@dataclass
class RunningGateway:
    """A gateway and everything to talk to it."""

    gateway: Gateway
    worker: FakeWorker
    tokenizer: FakeTokenizer
    stub: Any
    http: httpx.AsyncClient
    channel: Any

    async def generate(self, **fields: Any) -> list[gateway_pb2.GenerateResponse]:
        """All messages of one call."""
        return [m async for m in self.stub.Generate(gateway_pb2.GenerateRequest(**fields), timeout=20)]


def write_workers(path: Path, addresses: list[str], **entry: Any) -> None:
    """Writes an EDS file as the operator does: a rename, so that no reader sees half of it."""
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": h, "port_value": int(p)}}}} | entry
        for h, _, p in (a.rpartition(":") for a in addresses)
    ]
    resource = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "worker",
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode({"version_info": "1", "resources": [resource]}))
    temporary.replace(path)


@asynccontextmanager
async def run_gateway(
    worker: FakeWorker | None = None, tokenizer: FakeTokenizer | None = None, *, wait: bool = True, **settings: Any
) -> AsyncIterator[RunningGateway]:
    """A gateway whose mesh is one fake worker and tokenizer, ready unless `wait` is False."""
    worker, tokenizer = worker or FakeWorker(), tokenizer or FakeTokenizer()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serve_fakes(worker, tokenizer))
        defaults: dict[str, Any] = {
            "mesh_address": address,
            "tokenizer_address": address,
            "port": 0,
            "http_port": 0,
            "mesh_connections": 1,
        }
        gateway = await stack.enter_async_context(Gateway(Config(**(defaults | settings))))
        channel: Any = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc.port}"))
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.http.port}", timeout=20)
        )
        if wait:
            await eventually(lambda: not gateway.not_ready(), "the gateway is ready")
            if worker.has_snapshot:
                await eventually(lambda: bool(gateway.index.workers), "the worker's cache is known")
        yield RunningGateway(gateway, worker, tokenizer, gateway_pb2_grpc.GatewayServiceStub(channel), http, channel)
