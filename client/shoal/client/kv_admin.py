"""What people and tools ask of a KV store: sizes, blocks, whether all of it is right, and to drain it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.client.service_admin import ServiceAdmin, open_channel, open_socket
from shoal.rpc.status import from_rpc_error

GRPC_SUFFIX: Final = ".grpc"
"""A store listens for gRPC beside the socket of its clients, at that path and this."""


class KvAdmin(ServiceAdmin):
    """A connection to one store. Not for the data: that is `shoal.kv_client`. Calls raise ShoalError."""

    def __init__(
        self, *, endpoint: str = "", socket_path: str = "", token: str | None = None, timeout_s: float = 600.0
    ) -> None:
        """Either an endpoint or the path of a store's Unix socket. Raises InvalidArgument. Does not connect."""
        super().__init__(open_socket(socket_path + GRPC_SUFFIX) if socket_path else open_channel(endpoint), timeout_s)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._stub: Any = kv_store_pb2_grpc.KvStoreServiceStub(self._channel)

    def info(self) -> pb.GetInfoResponse:
        """What the store is."""
        with _typed():
            response: pb.GetInfoResponse = self._stub.GetInfo(
                pb.GetInfoRequest(), timeout=self._timeout_s, metadata=self._metadata
            )
            return response

    def stats(self, tenant: str = "") -> pb.StatsResponse:
        """Sizes, of one tenant's blocks if that is named, and counters for the operator."""
        with _typed():
            response: pb.StatsResponse = self._stub.Stats(
                pb.StatsRequest(tenant=tenant), timeout=self._timeout_s, metadata=self._metadata
            )
            return response

    def blocks(self, tenant: str = "", limit: int = 0) -> Iterator[pb.Block]:
        """Visible blocks, in no particular order; at most `limit` if that is not 0."""
        request = pb.ListRequest(tenant=tenant, limit=limit)
        with _typed():
            for part in self._stub.List(request, timeout=self._timeout_s, metadata=self._metadata):
                yield from part.blocks

    def verify(self, tenant: str = "", max_bytes_per_s: int = 0) -> Iterator[pb.VerifyResponse]:
        """Reads every block; progress, the last of which is `done`. 0: at the store's own rate, 1 GiB a second."""
        request = pb.VerifyRequest(tenant=tenant, max_bytes_per_s=max_bytes_per_s)
        with _typed():
            yield from self._stub.Verify(request, timeout=self._timeout_s, metadata=self._metadata)

    def drain(self, timeout_s: float = 0.0) -> Iterator[pb.DrainResponse]:
        """Lets the store take no more blocks and write what it has; progress, the last of which is `done`."""
        request = pb.DrainRequest(timeout_ms=int(1000 * timeout_s))
        with _typed():
            yield from self._stub.Drain(request, timeout=self._timeout_s, metadata=self._metadata)

    def resume(self) -> None:
        """Ends `drain`: the store takes blocks again."""
        with _typed():
            for _ in self._stub.Drain(pb.DrainRequest(resume=True), timeout=self._timeout_s, metadata=self._metadata):
                pass


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
