"""KvStoreService: gRPC to `Control` and back, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.kv_store.control import Control


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
            socket_path=self._socket_path,
            max_batch_size=self._control.max_batch_size,
            lease_timeout_ms=int(1000 * store.limits.lease_timeout_s),
        )

    async def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupResponse:  # noqa: N802
        """See the proto."""
        return self._control.lookup(request)

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
        return self._control.release(request)

    async def Prefetch(self, request: pb.PrefetchRequest, context: Any) -> pb.PrefetchResponse:  # noqa: N802
        """See the proto."""
        return await self._control.prefetch(request)

    async def Evict(self, request: pb.EvictRequest, context: Any) -> pb.EvictResponse:  # noqa: N802
        """See the proto."""
        return self._control.evict(request)

    async def Stats(self, request: pb.StatsRequest, context: Any) -> pb.StatsResponse:  # noqa: N802
        """See the proto."""
        return self._control.store.stats(request.tenant)

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """See the proto."""
        async for event in self._control.store.events.follow(request.epoch, request.start_seq):
            yield event
