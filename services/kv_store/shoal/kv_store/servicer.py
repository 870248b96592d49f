"""KvStoreService: gRPC to `Control` and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.kv_store.control import Control
from shoal.kv_store.tenants import Caller

_BEARER: Final = "bearer "


class KvStoreServicer(kv_store_pb2_grpc.KvStoreServiceServicer):
    """The RPCs. Errors of the domain become statuses in the server's interceptor."""

    def __init__(self, control: Control, socket_path: str) -> None:
        self._control = control
        self._socket_path = socket_path

    async def GetInfo(self, request: pb.GetInfoRequest, context: Any) -> pb.GetInfoResponse:  # noqa: N802
        """See the proto."""
        store = self._control.store
        return pb.GetInfoResponse(
            epoch=store.epoch,
            memory_bytes=store.arena.capacity_bytes,
            disk_bytes=store.disk.capacity_bytes if store.disk is not None else 0,
            socket_path=self._socket_path,
            max_batch_size=self._control.max_batch_size,
            lease_timeout_ms=int(1000 * store.limits.lease_timeout_s),
        )

    async def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupResponse:  # noqa: N802
        """See the proto."""
        return await self._control.lookup_with_peers(request, caller=self._caller(request, context))

    async def Reserve(self, request: pb.ReserveRequest, context: Any) -> pb.ReserveResponse:  # noqa: N802
        """See the proto."""
        return self._control.reserve(request)

    async def Commit(self, request: pb.CommitRequest, context: Any) -> pb.CommitResponse:  # noqa: N802
        """See the proto."""
        return await self._control.commit(request)

    async def Acquire(self, request: pb.AcquireRequest, context: Any) -> pb.AcquireResponse:  # noqa: N802
        """See the proto."""
        return self._control.acquire(request)

    async def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:  # noqa: N802
        """See the proto."""
        return await self._control.release(request)

    async def Prefetch(self, request: pb.PrefetchRequest, context: Any) -> pb.PrefetchResponse:  # noqa: N802
        """See the proto."""
        return await self._control.prefetch(request, caller=self._caller(request, context))

    async def Evict(self, request: pb.EvictRequest, context: Any) -> pb.EvictResponse:  # noqa: N802
        """See the proto."""
        return self._control.evict(request, caller=self._caller(request, context))

    async def Pin(self, request: pb.PinRequest, context: Any) -> pb.PinResponse:  # noqa: N802
        """See the proto."""
        return self._control.pin(request, self._identify(context))

    async def Unpin(self, request: pb.UnpinRequest, context: Any) -> pb.UnpinResponse:  # noqa: N802
        """See the proto."""
        return self._control.unpin(request, self._identify(context))

    async def Stats(self, request: pb.StatsRequest, context: Any) -> pb.StatsResponse:  # noqa: N802
        """See the proto."""
        return self._control.stats(request, self._identify(context))

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """See the proto."""
        async for event in self._control.watch(request, self._identify(context)):
            yield event

    async def List(self, request: pb.ListRequest, context: Any) -> AsyncIterator[pb.ListResponse]:  # noqa: N802
        """See the proto."""
        async for part in self._control.list_blocks(request, self._identify(context)):
            yield part

    async def Verify(self, request: pb.VerifyRequest, context: Any) -> AsyncIterator[pb.VerifyResponse]:  # noqa: N802
        """See the proto."""
        async for progress in self._control.verify(request, self._identify(context)):
            yield progress

    async def Drain(self, request: pb.DrainRequest, context: Any) -> AsyncIterator[pb.DrainResponse]:  # noqa: N802
        """See the proto."""
        async for progress in self._control.drain(request, self._identify(context)):
            yield progress

    def _caller(self, request: Any, context: Any) -> Caller | None:
        """Whoever asks, unless the call belongs to a session."""
        return None if request.scope.session else self._identify(context)

    def _identify(self, context: Any) -> Caller:
        """Raises Unauthenticated."""
        tenants = self._control.store.tenants
        if tenants.known is None:
            return tenants.identify(None)
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = metadata.get("authorization", "")
        return tenants.identify(given[len(_BEARER) :] if given.lower().startswith(_BEARER) else None)
