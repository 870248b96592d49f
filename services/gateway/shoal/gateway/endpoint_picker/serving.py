"""The endpoint picker's own port: proxies' streams, and the health services that proposal 004 names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import structlog

from shoal.api.envoy.v1 import ext_proc_pb2
from shoal.gateway.endpoint_picker import messages
from shoal.gateway.endpoint_picker.session import PickSession
from shoal.rpc.server import Registration, Server, ServerOptions, start_server

READINESS = "readiness"
LIVENESS = "liveness"
_log = structlog.get_logger("shoal.gateway.endpoint_picker")


class EndpointPicker:
    """`start`, then `stop`. A session for each stream, which is a request of the proxy's."""

    def __init__(self, make_session: Callable[[], PickSession], options: ServerOptions) -> None:
        self._make_session = make_session
        self._options = options
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return 0 if self._server is None else self._server.port

    async def start(self) -> None:
        """Raises OSError naming the address when it cannot be bound."""
        registrations = [
            Registration(self._add, self, messages.SERVICE),
            Registration(lambda servicer, server: None, None, READINESS),
        ]
        self._server = await start_server(self._options, registrations, live_names=(LIVENESS,))
        _log.info("endpoint picker", address=f"{self._options.host}:{self.port}")

    async def set_serving(self, serving: bool) -> None:
        """Whether proxies should ask here."""
        if self._server is not None:
            await self._server.set_serving(serving)

    async def stop(self, grace_s: float) -> None:
        """Proxies that are told nothing more send their requests on."""
        if self._server is not None:
            await self._server.stop(grace_s)

    async def process(
        self, requests: AsyncIterator[ext_proc_pb2.ProcessingRequest], context: object
    ) -> AsyncIterator[ext_proc_pb2.ProcessingResponse]:
        """`ExternalProcessor.Process`."""
        session = self._make_session()
        try:
            async for request in requests:
                for response in await session.answer(request):
                    yield response
        finally:
            session.close()

    def _add(self, servicer: object, server: grpc.aio.Server) -> None:
        handler = grpc.stream_stream_rpc_method_handler(
            self.process,
            request_deserializer=ext_proc_pb2.ProcessingRequest.FromString,
            response_serializer=ext_proc_pb2.ProcessingResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(messages.SERVICE, {"Process": handler}),))
