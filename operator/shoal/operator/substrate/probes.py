"""Asks a process whether it can serve."""

from __future__ import annotations

import asyncio
import http.client
import io
from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.operator.planner import Readiness, ReadinessKind

_MAX_BODY_BYTES = 4 << 20
_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a process said."""

    ready: bool
    answered: bool
    """Whether it said anything at all; a process that answers "not ready" is alive."""
    detail: str = ""


async def probe(readiness: Readiness, timeout_s: float) -> ProbeResult:
    """One attempt, of at most `timeout_s`. Never raises for what the process does."""
    if readiness.kind is ReadinessKind.GRPC_HEALTH:
        return await _probe_grpc(readiness.target, timeout_s)
    try:
        status, body = await http_get(readiness.target, readiness.path, timeout_s)
    except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
        return ProbeResult(False, False, str(error) or type(error).__name__)
    return ProbeResult(status == 200, True, "" if status == 200 else f"{status} {body[:200]!r}")


async def _probe_grpc(target: str, timeout_s: float) -> ProbeResult:
    # A channel of its own for each probe: a kept one would back off after refused connections and notice a start late.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            silent = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            return ProbeResult(False, not silent, f"{error.code().name}: {error.details()}")
    if answer.status == _SERVING:
        return ProbeResult(True, True)
    return ProbeResult(False, True, "answers NOT_SERVING")


async def http_get(target: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """GET over `host:port` or, when `target` starts with /, a unix socket. Returns the status and the body.

    Raises OSError, TimeoutError, or ValueError for an answer that is not HTTP or larger than 4 MiB.
    """
    return await _ask("GET", target, path, timeout_s)


async def http_post(target: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """POST of nothing; see `http_get`."""
    return await _ask("POST", target, path, timeout_s)


async def _ask(method: str, target: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    async with asyncio.timeout(timeout_s):
        if target.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(target)
        else:
            host, _, port = target.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            answer = bytearray()
            while part := await reader.read(1 << 16):
                answer += part
                if len(answer) > _MAX_BODY_BYTES:
                    raise ValueError(f"the answer to {method} {path} is larger than {_MAX_BODY_BYTES} bytes")
        finally:
            writer.close()
    return _parse_answer(bytes(answer))


def _parse_answer(answer: bytes) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(_Received(answer))  # type: ignore[arg-type]  # it only calls makefile
    try:
        response.begin()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ValueError(f"not a whole HTTP answer: {error!r}") from error


class _Received:
    """Bytes that are here already, as http.client reads them."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._received)
