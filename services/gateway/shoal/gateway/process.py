"""The gateway's parts put together, from the first connection to the drained end."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import structlog

from shoal.gateway.admission.admission import Admission
from shoal.gateway.admission.setup import make_admission
from shoal.gateway.attempt import StallWatch
from shoal.gateway.config import Config
from shoal.gateway.dispatch import Dispatcher
from shoal.gateway.endpoint_picker.serving import EndpointPicker
from shoal.gateway.endpoint_picker.session import PickSession
from shoal.gateway.explain.ring import RecentRequests
from shoal.gateway.failover import FailoverConfig, MoveGate
from shoal.gateway.http.app import StatusHandlers, make_app
from shoal.gateway.http.completions import CompletionHandlers
from shoal.gateway.http.server import HttpServer, start_http
from shoal.gateway.peers.sharing import Sharing
from shoal.gateway.picking import Picker
from shoal.gateway.pipeline import Pipeline
from shoal.gateway.rebalancing import Rebalancing
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.policies import policy_of
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.routing.rebalance import RebalanceConfig
from shoal.gateway.routing.router import Router
from shoal.gateway.servicer import GatewayServicer
from shoal.gateway.tenants import Authenticator, load_authenticator
from shoal.gateway.tokenizing import Tokenizer, open_tokenizer_channel
from shoal.gateway.upstream import Mesh, open_channel
from shoal.gateway.workers.endpoints import EdsFile, Endpoint, EndpointSource, FixedEndpoints
from shoal.gateway.workers.fleet import Fleet
from shoal.rpc.server import Server, ServerOptions, start_server

TRANSPORT_MAX_BYTES: Final = 80 << 20
"""Above every max_request_bytes, so that a large request gets our answer, with the numbers, and not the transport's."""
QUEUE_DRAIN_SHARE: Final = 0.5
"""Of the drain's time: a request that still waits then is told to go elsewhere, while it can be, and not cut."""
_log = structlog.get_logger("shoal.gateway")


class Gateway:
    """Use as an async context manager: inside, both servers listen; leaving cuts what still runs."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._channels: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self.options = ServerOptions(config.host, config.port, config.drain_timeout_s, TRANSPORT_MAX_BYTES)
        self._completions: CompletionHandlers
        self.fleet: Fleet
        self.tokenizer: Tokenizer
        self.index: PrefixIndex
        self.gate: MoveGate
        self.watch: StallWatch
        self.loads: LoadTracker
        self.sharing: Sharing
        self.admission: Admission | None
        self.grpc: Server
        self.endpoint_picker: EndpointPicker | None = None
        self.http: HttpServer

    async def __aenter__(self) -> Gateway:
        config = self._config
        authenticator = load_authenticator(config.api_keys_file)
        to_mesh = [open_channel(config.mesh_address) for _ in range(config.mesh_connections)]
        to_tokenizers = open_tokenizer_channel(config.tokenizer_address)
        self._channels = [*to_mesh, to_tokenizers]
        mesh = Mesh(to_mesh)
        self.index = PrefixIndex(config.prefix_index_keys)
        self.tokenizer = Tokenizer(to_tokenizers)
        self.fleet = Fleet(_source(config), self.index)
        policy = policy_of(config.routing_policy)
        loads = self.loads = LoadTracker()
        watch = self.watch = StallWatch(
            stall_timeout_s=config.stream_stall_timeout_s, first_token_timeout_s=config.first_token_timeout_s
        )
        recent = RecentRequests(config.explain_requests)
        self.sharing = Sharing(config.peers_file, loads, self.index, recent)
        router = Router(self.index, loads, policy)
        picker = Picker(self.fleet, router, self.sharing.board)
        dispatcher = Dispatcher(self.fleet, picker, loads, mesh, watch)
        failover = FailoverConfig(max_moves=config.max_moves, wait_s=config.move_wait_s)
        self.admission = make_admission(config, self.fleet, loads, self.sharing.peers)
        if self.admission is not None:
            self.sharing.share_service(self.admission)
        pipeline = Pipeline(self.tokenizer, dispatcher, failover, recent, self.admission)
        self.gate = pipeline.gate
        limits = {"max_request_bytes": config.max_request_bytes, "max_request_s": config.max_request_s}
        explainer = self.sharing.explainer
        servicer = GatewayServicer(pipeline, authenticator, explainer, **limits)  # type: ignore[arg-type]
        self._completions = CompletionHandlers(pipeline, authenticator, **limits)  # type: ignore[arg-type]
        app = make_app(self._completions, StatusHandlers(pipeline, authenticator, self.not_ready))
        self.grpc = await start_server(self.options, [servicer.registration()])
        if config.endpoint_picker == "on":
            self.endpoint_picker = _endpoint_picker(config, pipeline, picker, loads, authenticator)
            await self.endpoint_picker.start()
        self.http = await start_http(app, config.host, config.http_port)
        explainer.gateway = f"{config.host}:{self.grpc.port}"
        await self.sharing.start(config.host, config.peer_port)
        self._tasks = [asyncio.create_task(self.fleet.run()), asyncio.create_task(self.tokenizer.learn())]
        self._tasks.append(asyncio.create_task(watch.run(), name="stall watch"))
        if config.rebalance == "on" and config.max_moves and policy.needs_outlook:
            rebalancing = Rebalancing(self.fleet, loads, watch, self.gate, RebalanceConfig())
            self._tasks.append(asyncio.create_task(rebalancing.run(), name="rebalancing"))
        events = self.fleet.watch_events(config.kv_event_silence_s)
        self._tasks.append(asyncio.create_task(events, name="kv event watch"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.http.stop(0)
        await self.grpc.stop(0)
        if self.endpoint_picker is not None:
            await self.endpoint_picker.stop(0)
        await self.sharing.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    def not_ready(self) -> str:
        """Why requests cannot be served; "" when they can."""
        if self._draining:
            return "draining: no new requests are taken"
        if not self.tokenizer.ready:
            return "the tokenizer has not answered yet"
        return "" if self.fleet.any_ready else "no worker is ready"

    async def until_ready(self) -> None:
        """Waits until requests can be served."""
        await self._tasks[1]
        while self.not_ready():
            self.fleet.changed.clear()
            if self.not_ready():
                await self.fleet.changed.wait()

    async def follow_health(self) -> None:
        """Keeps gRPC health true as workers come and go. Runs until cancelled, or until the drain begins."""
        was_ready = True
        if self.endpoint_picker is not None:
            await self.endpoint_picker.set_serving(True)
        while not self._draining:
            self.fleet.changed.clear()
            ready = not self.not_ready()
            if ready != was_ready and not self._draining:
                was_ready = ready
                _log.info("ready" if ready else "not ready", problem=self.not_ready())
                await self._set_serving(ready)
            await self.fleet.changed.wait()

    async def _set_serving(self, serving: bool) -> None:
        await self.grpc.set_serving(serving)
        if self.endpoint_picker is not None:
            await self.endpoint_picker.set_serving(serving)

    async def drain(self, timeout_s: float) -> None:
        """Says that it goes away and takes nothing new; returns when every stream has ended or the time is up."""
        self._draining = True
        self.fleet.changed.set()
        await self._set_serving(False)
        end_queue = None
        if self.admission is not None:
            end_queue = asyncio.get_running_loop().call_later(timeout_s * QUEUE_DRAIN_SHARE, self.admission.drain)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(self._completions.drain(), self.grpc.stop(timeout_s))
        if end_queue is not None:
            end_queue.cancel()


def _endpoint_picker(
    config: Config, pipeline: Pipeline, picker: Picker, loads: LoadTracker, authenticator: Authenticator
) -> EndpointPicker:
    def make_session() -> PickSession:
        limit = config.max_request_bytes
        return PickSession(pipeline.fleet, picker, loads, pipeline.tokenizer, authenticator, limit)

    return EndpointPicker(make_session, ServerOptions(config.host, config.endpoint_picker_port))


def _source(config: Config) -> EndpointSource:
    if config.workers_file:
        return EdsFile(Path(config.workers_file))
    return FixedEndpoints(frozenset({Endpoint(config.mesh_address)}))
