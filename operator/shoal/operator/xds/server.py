"""Aggregated discovery over gRPC, for Envoys anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from envoy_data_plane.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from envoy_data_plane.envoy.service.discovery.v3 import Resource as DeltaResource

from shoal.operator.measures import DISCOVERY_NACKS, DISCOVERY_UPDATES
from shoal.operator.xds.conversation import Conversation, Request, Update
from shoal.operator.xds.snapshot import Kind, Snapshot
from shoal.operator.xds.store import Rejection, SnapshotStore

SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
FOLLOWER: Final = "shoal-follower"
"""What a client that is no Envoy calls its kind (`node.user_agent_name`)."""
MAX_REQUEST_BYTES: Final = 1 << 20
"""An Envoy names each of its clusters: a thousand need some 100 KiB."""
MAX_REJECTION_CHARACTERS: Final = 2000
_UNSENT_UPDATES: Final = 16
"""Requests that wait while an update cannot be sent; further ones wait in the connection."""

_log = structlog.get_logger()
_Reader = Callable[[Any], Request | None]
_Writer = Callable[[Update], Any]


class DiscoveryServer:
    """Adds itself to a `grpc.aio` server, whose owner decides on addresses and credentials.

    An Envoy belongs to the snapshot that has the name of its `node.cluster`; until there is one, it waits.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers both variants."""
        handlers = {
            "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
                self._stream, DiscoveryRequest.parse, DiscoveryResponse.__bytes__
            ),
            "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(
                self._delta, DeltaDiscoveryRequest.parse, DeltaDiscoveryResponse.__bytes__
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _stream(
        self, requests: AsyncIterator[DiscoveryRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[DiscoveryResponse]:
        async for update in self._converse(requests, context, Conversation(by_changes=False), _read_state):
            yield _write_state(update)

    async def _delta(
        self, requests: AsyncIterator[DeltaDiscoveryRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[DeltaDiscoveryResponse]:
        async for update in self._converse(requests, context, Conversation(by_changes=True), _read_changes):
            yield _write_changes(update)

    async def _converse(
        self,
        requests: AsyncIterator[Any],
        context: grpc.aio.ServicerContext[Any, Any],
        conversation: Conversation,
        read: _Reader,
    ) -> AsyncIterator[Update]:
        """Requests and snapshots, whichever comes, until the Envoy goes."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        node = first.node
        if node is None or not node.cluster or not node.id:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "node.id or node.cluster is empty: name the Envoy, and what it serves (namespace/name)",
            )
        is_envoy = node.user_agent_name != FOLLOWER
        # Followers have the name of their pod, which their Envoy has too.
        name = node.id if is_envoy else f"{node.id}/follower"
        log = _log.bind(cluster=node.cluster, node=name)
        self._store.joined(node.cluster, name, is_envoy=is_envoy)
        log.info("an Envoy connected")
        inbox: asyncio.Queue[Request | Snapshot | None] = asyncio.Queue(_UNSENT_UPDATES)
        tasks = (
            asyncio.create_task(self._read_all(first, requests, read, inbox)),
            asyncio.create_task(self._watch(node.cluster, inbox)),
        )
        try:
            while (message := await inbox.get()) is not None:
                if isinstance(message, Request):
                    self._note(node.cluster, name, conversation, message)
                    updates = conversation.hear(message)
                else:
                    updates = conversation.tell(message)
                if conversation.is_settled:
                    self._store.settled(node.cluster, name)
                for update in updates:
                    DISCOVERY_UPDATES.labels(update.kind.name.lower()).inc()
                    log.debug("told", kind=update.kind.name, version=update.version, num=len(update.resources))
                    yield update
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._store.left(node.cluster, name)
            log.info("an Envoy left")

    async def _read_all(
        self, first: Any, requests: AsyncIterator[Any], read: _Reader, inbox: asyncio.Queue[Request | Snapshot | None]
    ) -> None:
        """Ends with None: the Envoy will say no more, or its connection is gone."""
        try:
            if (request := read(first)) is not None:
                await inbox.put(request)
            async for message in requests:
                if (request := read(message)) is not None:
                    await inbox.put(request)
        except grpc.aio.BaseError as error:
            _log.info("an Envoy's stream broke", error=str(error))
        await inbox.put(None)

    async def _watch(self, cluster: str, inbox: asyncio.Queue[Request | Snapshot | None]) -> None:
        seen: Snapshot | None = None
        while True:
            await self._store.changed(cluster, seen)
            seen = self._store.get(cluster)
            if seen is not None:
                await inbox.put(seen)

    def _note(self, cluster: str, node: str, conversation: Conversation, request: Request) -> None:
        if not request.nonce or not conversation.is_current(request):
            return
        if request.error is None:
            self._store.accepted(cluster, node, request.kind)
            return
        version = conversation.version_of_last(request.kind)
        message = request.error[:MAX_REJECTION_CHARACTERS]
        DISCOVERY_NACKS.labels(request.kind.name.lower()).inc()
        _log.warning("an Envoy rejects an update", cluster=cluster, node=node, kind=request.kind.name, error=message)
        self._store.rejected(Rejection(cluster, node, request.kind, version, message))


def _kind(type_url: str) -> Kind | None:
    """None: a kind that nobody here serves; an Envoy that asks goes on without."""
    try:
        return Kind(type_url)
    except ValueError:
        return None


def _read_state(message: DiscoveryRequest) -> Request | None:
    kind = _kind(message.type_url)
    if kind is None:
        return None
    error = message.error_detail.message if message.error_detail is not None else None
    return Request(kind, message.response_nonce, error, subscribe=message.resource_names)


def _read_changes(message: DeltaDiscoveryRequest) -> Request | None:
    kind = _kind(message.type_url)
    if kind is None:
        return None
    error = message.error_detail.message if message.error_detail is not None else None
    return Request(
        kind,
        message.response_nonce,
        error,
        subscribe=message.resource_names_subscribe,
        unsubscribe=message.resource_names_unsubscribe,
        versions=message.initial_resource_versions,
    )


def _write_state(update: Update) -> DiscoveryResponse:
    return DiscoveryResponse(
        version_info=update.version,
        resources=[resource.body for resource in update.resources],
        type_url=update.kind,
        nonce=update.nonce,
    )


def _write_changes(update: Update) -> DeltaDiscoveryResponse:
    resources = [
        DeltaResource(name=resource.name, version=resource.version, resource=resource.body)
        for resource in update.resources
    ]
    return DeltaDiscoveryResponse(
        system_version_info=update.version,
        resources=resources,
        type_url=update.kind,
        removed_resources=list(update.removed),
        nonce=update.nonce,
    )
