"""Servers that stand behind Envoy in tests: workers and gateways that answer bytes with bytes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from shoal.operator.envoy import Endpoint

GENERATE = "/shoal.api.worker.v1.ModelWorkerService/Generate"
GATEWAY_ECHO = "/shoal.api.gateway.v1.GatewayService/Echo"
GATEWAY_GENERATE = "/shoal.api.gateway.v1.GatewayService/Generate"


def encode_load_report(*, tokens_per_s: float, kv_cache: float, queue: float) -> bytes:
    """An `xds.data.orca.v3.OrcaLoadReport`: field 6 is the rate, map 8 the named metrics."""

    def entry(name: str, value: float) -> bytes:
        body = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x11" + struct.pack("<d", value)
        return b"\x42" + bytes([len(body)]) + body

    return b"\x31" + struct.pack("<d", tokens_per_s) + entry("kv_cache", kv_cache) + entry("queue", queue)


@dataclass
class FakeEndpoint:
    """One gRPC server. Its attributes may be changed while it runs."""

    name: str
    endpoint: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", 0))
    refuse_with: grpc.StatusCode | None = None
    """Ends every call with this code, before any message."""
    utilization: float = 0.5
    num_calls: int = 0
    metadata: list[dict[str, str]] = field(default_factory=list)
    """Of every call, in order."""
    held: asyncio.Event | None = None
    """When set, streams send one message and wait for it before their second."""
    num_reports: int = 0
    health: Any = field(default_factory=HealthServicer)

    async def set_serving(self, serving: bool) -> None:
        """Changes what its health check answers."""
        states = health_pb2.HealthCheckResponse
        await self.health.set("", states.SERVING if serving else states.NOT_SERVING)

    async def call(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answers its own name; two messages."""
        self.num_calls += 1
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        if self.refuse_with is not None:
            await context.abort(self.refuse_with, f"{self.name} refuses")
        context.set_trailing_metadata((("endpoint-load-metrics-bin", b"secret"), ("kept", "yes")))
        yield self.name.encode()
        if self.held is not None:
            await self.held.wait()
        yield b"end"

    async def echo(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers each message with itself, while more may come."""
        async for request in requests:
            yield request

    async def report_load(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """`OpenRcaService.StreamCoreMetrics`."""
        while True:
            self.num_reports += 1
            yield encode_load_report(tokens_per_s=100, kv_cache=self.utilization, queue=0.01)
            await asyncio.sleep(0.1)

    async def add_reports_to(self, server: grpc.aio.Server) -> None:
        """Health and load reports, healthy from the start."""
        reports = grpc.unary_stream_rpc_method_handler(self.report_load)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "xds.service.orca.v3.OpenRcaService", {"StreamCoreMetrics": reports}
                ),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        await self.set_serving(True)


@asynccontextmanager
async def serving(
    name: str, port: int = 0, *, host: str = "127.0.0.1", **attributes: Any
) -> AsyncIterator[FakeEndpoint]:
    """Runs a FakeEndpoint that is healthy from the start."""
    fake = FakeEndpoint(name, **attributes)
    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(fake.call)
    handlers = [
        grpc.method_handlers_generic_handler("shoal.api.worker.v1.ModelWorkerService", {"Generate": handler}),
        grpc.method_handlers_generic_handler("shoal.api.tokenizer.v1.TokenizerService", {"Encode": handler}),
        grpc.method_handlers_generic_handler(
            "shoal.api.gateway.v1.GatewayService",
            {"Generate": handler, "Echo": grpc.stream_stream_rpc_method_handler(fake.echo)},
        ),
    ]
    server.add_generic_rpc_handlers(tuple(handlers))
    await fake.add_reports_to(server)
    fake.endpoint = Endpoint(host, server.add_insecure_port(f"{host}:{port}"))
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)


@asynccontextmanager
async def serving_http() -> AsyncIterator[tuple[Endpoint, list[str]]]:
    """An HTTP server that answers "ok"; yields where it is and the head of every request it got."""
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head.decode().lower())
            fields = "content-length: 2\r\nendpoint-load-metrics: TEXT cpu=1\r\nconnection: close"
            writer.write(f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1]), heads
