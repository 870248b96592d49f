"""The call to a worker, through the mesh. Nothing above this file knows that it is gRPC."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing from the stubs
from opentelemetry import propagate

from shoal.rpc.errors import Cancelled, Internal, ShoalError, Unavailable
from shoal.rpc.status import from_rpc_error, has_details

GENERATE: Final = "/shoal.api.worker.v1.ModelWorkerService/Generate"
PIN_HEADER: Final = "x-shoal-endpoint"
PREFIX_HASH_HEADER: Final = "x-shoal-prefix-hash"
SERVED_BY_HEADER: Final = "x-shoal-served-by"
_NOT_CONNECTED: Final = "failed to connect to all addresses"
"""How gRPC begins its words when a call found no connection."""
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.enable_retries", 0),  # Envoy retries; twice would multiply
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),  # else an Envoy that restarts is missed for a second after it is back
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # else every channel to one address shares one connection
]


def open_channel(address: str) -> grpc.aio.Channel:
    """A connection of its own to a part of the mesh."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


class Mesh:
    """Starts calls to workers; messages are bytes both ways. The caller owns the channels."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        calls: list[Any] = [channel.unary_stream(GENERATE, None, None) for channel in channels]
        self._calls = itertools.cycle(calls)

    def generate(
        self, request: bytes, *, endpoints: Sequence[str], request_id: str, timeout_s: float, prefix_hash: str = ""
    ) -> UpstreamCall:
        """`endpoints`, best first, pin the call; without any, Envoy chooses, by `prefix_hash` if it is set up so."""
        carrier: dict[str, str] = {"x-request-id": request_id}
        if endpoints:
            carrier[PIN_HEADER] = ",".join(endpoints)
        if prefix_hash:
            carrier[PREFIX_HASH_HEADER] = prefix_hash
        propagate.inject(carrier)
        return UpstreamCall(next(self._calls)(request, metadata=tuple(carrier.items()), timeout=timeout_s))


class Lost(Unavailable):
    """The connection to the worker broke, or its process ended: the transport or Envoy says so, not the worker."""


class Unreached(Unavailable):
    """No worker had the request: Envoy is away, or could connect to none."""


class UpstreamCall:
    """One attempt at one request. `read` is called by one task; `cancel` by anybody on the loop."""

    __slots__ = ("_call", "_cancelled", "_failed_at", "_num_messages")

    def __init__(self, call: Any) -> None:
        self._call = call
        self._cancelled = False
        self._num_messages = 0
        self._failed_at = ""

    async def read(self) -> bytes | None:
        """The next message, or None after the last one. Raises the domain error that ended the call."""
        try:
            raw = await self._call.read()
        except grpc.RpcError as error:
            self._failed_at = _worker_of(error)
            raise _translated(error, self._num_messages) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._cancelled and not (task is not None and task.cancelling()):
                raise Cancelled("the request was cancelled") from None
            raise
        if raw is EOF:
            return None
        self._num_messages += 1
        return raw  # type: ignore[no-any-return]

    async def served_by(self) -> str:
        """ip:port of the worker that answers, or "" when the mesh does not say. Call after the first message."""
        for key, value in await self._call.initial_metadata():
            if key == SERVED_BY_HEADER:
                return str(value)
        return ""

    def failed_at(self) -> str:
        """ip:port of the worker that the error came from, or "" when the mesh does not say."""
        return self._failed_at

    def cancel(self) -> None:
        """Gives the request up; the worker frees its blocks. Harmless when it is over."""
        self._cancelled = True
        self._call.cancel()


def _translated(error: grpc.RpcError, num_messages: int) -> ShoalError:
    result = from_rpc_error(error)
    if not isinstance(result, (Cancelled, Internal, Unavailable)) or has_details(error):
        return result
    if num_messages:
        return Lost("the worker was lost in the middle of the answer; send the request again")
    kind = Lost if _may_have_been_sent(error) else Unreached
    return kind("no worker can be reached right now; try again in a moment")


def _may_have_been_sent(error: grpc.RpcError) -> bool:
    """Envoy names the worker that it is connected to. Without a word of Envoy, our own connection tells."""
    assert isinstance(error, grpc.aio.AioRpcError)
    headers: Any = (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))
    if headers:
        return any(key == SERVED_BY_HEADER for key, _ in headers)
    return not (error.details() or "").startswith(_NOT_CONNECTED)


def _worker_of(error: grpc.RpcError) -> str:
    """What Envoy says with an error: in the headers, which are the trailers when there were no others."""
    assert isinstance(error, grpc.aio.AioRpcError)
    headers: Any = (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))
    return next((str(value) for key, value in headers if key == SERVED_BY_HEADER), "")
