"""Many calls at the same moment: the server takes them all."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.rpc.server import ServerOptions, start_server

NUM_CALLS = 3000


async def test_a_burst_of_calls_is_not_thinned_out() -> None:
    """Issued from the server's own event loop, so that it comes to none of them before the last is sent."""
    server = await start_server(ServerOptions(host="127.0.0.1", port=0), [])
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        calls = [stub.Check.future(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(NUM_CALLS)]
        codes = [await asyncio.to_thread(call.code) for call in calls]
    await server.stop(0)
    assert codes == [grpc.StatusCode.OK] * NUM_CALLS
