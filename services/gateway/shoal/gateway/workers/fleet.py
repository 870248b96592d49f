"""Follows the endpoint source: one connection a worker, and the models they serve together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import namespace_key
from shoal.gateway import metrics
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.workers.connection import LOOKS_PER_LIMIT, WorkerConnection
from shoal.gateway.workers.endpoints import Endpoint, EndpointSource
from shoal.rpc.errors import NotFound, Unavailable

_log = structlog.get_logger("shoal.gateway.workers")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the gateway must know of a model to validate and route its requests."""

    name: str
    digest: str
    kv_layout: str
    block_size: int
    max_model_len: int
    vocab_size: int
    created_unix_s: int
    """When this gateway first saw it."""

    def namespace(self, tenant_salt: bytes) -> bytes:
        """The parent of a sequence's first block key."""
        return namespace_key(self.digest, self.kv_layout, tenant_salt=tenant_salt)


class Fleet:
    """Every worker known. Owned by the event loop; `run` does the work until it is cancelled."""

    def __init__(self, source: EndpointSource, index: PrefixIndex) -> None:
        self._source = source
        self._index = index
        self._connections: dict[str, WorkerConnection] = {}
        self._healthy: frozenset[str] = frozenset()
        self._models: dict[str, ServedModel] = {}
        self.kv_tokens: Mapping[str, int] = {}
        """Tokens whose KV each worker's device holds, by its address."""
        self.changed = asyncio.Event()
        """Set after anything changed; whoever waits for a state clears it first."""
        self.on_change: Callable[[], object] = bool
        """Called after anything changed."""

    async def run(self) -> None:
        """Follows the source. Ends only by cancellation, and closes every connection then."""
        try:
            async for endpoints in self._source.updates():
                await self._follow(endpoints)
        finally:
            await asyncio.gather(*(c.close() for c in self._connections.values()))

    async def watch_events(self, silence_limit_s: float) -> None:
        """Notices workers whose KV events stopped for so long, until cancelled. 0: returns at once."""
        while silence_limit_s:
            await asyncio.sleep(silence_limit_s / LOOKS_PER_LIMIT)
            for connection in self._connections.values():
                connection.look()
            metrics.KV_STALE_WORKERS.set(sum(connection.is_stale for connection in self._connections.values()))

    def model(self, name: str) -> ServedModel:
        """The model called `name`; "" is the only one. Raises NotFound naming the models there are."""
        if not self._models:
            raise Unavailable("no worker has reported its model yet; try again in a moment")
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        found = self._models.get(name)
        if found is None:
            there_are = ", ".join(sorted(self._models))
            problem = f"model {name!r} does not exist" if name else "there are several models, so one must be named"
            raise NotFound(f"{problem}; available: {there_are}", field="model")
        return found

    @property
    def models(self) -> Sequence[ServedModel]:
        """Every model that was seen, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def ready_endpoints(self, model: str) -> list[str]:
        """Workers that serve `model` and can take requests."""
        return [
            address
            for address, connection in self._connections.items()
            if address in self._healthy and connection.info is not None and connection.info.model == model
        ]

    def ready_infos(self, model: str) -> list[worker_pb2.GetInfoResponse]:
        """What the workers that serve `model` and can take requests say of themselves."""
        connections = [self._connections[address] for address in self.ready_endpoints(model)]
        return [connection.info for connection in connections if connection.info is not None]

    def epoch_of(self, address: str) -> int:
        """Which life of the worker at `address` is known; 0 when it cannot be reached."""
        connection = self._connections.get(address)
        return 0 if connection is None or connection.info is None else connection.info.epoch

    @property
    def any_ready(self) -> bool:
        """Whether at least one worker can take requests."""
        return any(c.info is not None and a in self._healthy for a, c in self._connections.items())

    async def _follow(self, endpoints: frozenset[Endpoint]) -> None:
        addresses = {endpoint.address for endpoint in endpoints}
        self._healthy = frozenset(endpoint.address for endpoint in endpoints if endpoint.healthy)
        gone = [self._connections.pop(address) for address in list(self._connections) if address not in addresses]
        for address in sorted(addresses - self._connections.keys()):
            self._connections[address] = WorkerConnection(address, self._index, self._learn)
        await asyncio.gather(*(connection.close() for connection in gone))
        _log.info("workers", known=sorted(addresses), healthy=len(self._healthy))
        self._tell()

    def _learn(self, info: worker_pb2.GetInfoResponse | None) -> None:
        if info is not None:
            known = self._models.get(info.model)
            self._models[info.model] = ServedModel(
                name=info.model,
                digest=info.model_digest,
                kv_layout=info.kv_layout,
                block_size=info.block_size,
                max_model_len=info.max_model_len,
                vocab_size=info.vocab_size,
                created_unix_s=known.created_unix_s if known else int(time.time()),
            )
        self._tell()

    def _tell(self) -> None:
        infos = {address: connection.info for address, connection in self._connections.items()}
        self.kv_tokens = {a: info.num_blocks * info.block_size for a, info in infos.items() if info is not None}
        self.changed.set()
        self.on_change()
