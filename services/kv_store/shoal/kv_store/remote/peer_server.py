"""The peer port: calls of other stores, authenticated, and payloads for those who cannot reach the data port.

A gRPC server with threads of its own, for the sake of payloads: their bytes are copied outside of the store's thread.
What needs the store goes there and back, which costs a call some 0.1 ms.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from shoal.api.kv_store.v1 import kv_peer_pb2
from shoal.kv_store.remote.answers import Answers
from shoal.kv_store.remote.auth import Signer
from shoal.kv_store.remote.grpc_stream import READ, send_parts
from shoal.kv_store.remote.options import RemoteOptions
from shoal.kv_store.remote.peer import SERVICE
from shoal.kv_store.remote.tcp_server import Count
from shoal.kv_store.remote.tickets import TicketBook
from shoal.rpc.errors import ShoalError

CALL_THREADS: Final = 4
MAX_CALLS: Final = 256
"""That wait or run; further ones are refused."""
MAX_CALL_S: Final = 10.0
_MAX_MESSAGE_BYTES: Final = 1 << 20
_log = structlog.get_logger("shoal.kv_store")


@dataclass(frozen=True, slots=True)
class _Method:
    parse: Callable[[bytes], Any]
    answer: Callable[[Any], Awaitable[Message]]


class PeerServer:
    """Listens from construction until `close`."""

    def __init__(
        self,
        host: str,
        port: int,
        answers: Callable[[], Answers],
        book: TicketBook,
        options: RemoteOptions,
        count: Count,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Raises OSError when the address cannot be had. With port 0, `port` says which it is."""
        self._answers = answers
        self._book = book
        self._signer: Signer = options.signer
        self._count = count
        self._loop = loop
        self._sending = threading.Semaphore(options.max_transfers)
        self._server = grpc.server(
            ThreadPoolExecutor(CALL_THREADS + options.max_transfers, thread_name_prefix="kv-peer"),
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if options.tls is not None:
                self.port = self._server.add_secure_port(address, options.tls.server_credentials())
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is the port in use?") from error
        self._server.start()

    def close(self) -> None:
        """Ends every call. Not from the store's thread: calls that run need it to end."""
        self._server.stop(grace=0).wait()

    def _handlers(self) -> Any:
        methods = {
            "Locate": _Method(kv_peer_pb2.LocateRequest.FromString, lambda request: self._answers().locate(request)),
            "Grant": _Method(kv_peer_pb2.GrantRequest.FromString, lambda request: self._answers().grant(request)),
            "Offer": _Method(kv_peer_pb2.OfferRequest.FromString, lambda request: self._answers().offer(request)),
        }
        methods["Suspect"] = _Method(kv_peer_pb2.SuspectRequest.FromString, lambda r: self._answers().suspect(r))
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(f"/{SERVICE}/{name}", method))
            for name, method in methods.items()
        }
        handlers["Read"] = grpc.unary_stream_rpc_method_handler(self._read)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _unary(self, path: str, method: _Method) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                nonce = self._signer.verify_call(path, body, _metadata(context))
                request = method.parse(body)
                left_s = min(context.time_remaining() or MAX_CALL_S, MAX_CALL_S)
                running = asyncio.run_coroutine_threadsafe(_run(method.answer(request)), self._loop)
                try:
                    response = running.result(left_s).SerializeToString()
                except FutureTimeout:
                    running.cancel()
                    context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "not within the call's time")
            except ShoalError as error:
                self._count("peer_calls_refused", 1)
                context.abort(error.code, error.message)
            except DecodeError:
                self._count("peer_calls_refused", 1)
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be read")
            context.set_trailing_metadata(tuple(self._signer.sign_answer(path, response, nonce)))
            return bytes(response)

        return answer

    def _read(self, body: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            self._signer.verify_call(READ, body, _metadata(context))
        except ShoalError as error:
            self._count("peer_calls_refused", 1)
            context.abort(error.code, error.message)
        yield from send_parts(self._book, body, self._count, self._sending)


async def _run(answer: Awaitable[Message]) -> Message:
    return await answer


def _metadata(context: grpc.ServicerContext) -> list[tuple[str, str | bytes]]:
    return [(name, value) for name, value in context.invocation_metadata()]
