"""The direct line to one worker, past Envoy: what it serves and what its cache holds. Requests never go this way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing from the stubs

from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc
from shoal.gateway import metrics
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.workers.kv_events import EventGap, KvEventFeed

INFO_TIMEOUT_S: Final = 5.0
LOST_TIMEOUT_S: Final = 1.0
"""For a worker whose connection just broke to show that it lives."""
RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 5.0
MAX_GAPS: Final = 3
"""After so many gaps in a row without an event in between, the next subscription asks for a snapshot."""
LOOKS_PER_LIMIT: Final = 8
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 10_000),  # an event stream may be silent for hours; a dead peer must still show
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
]
_log = structlog.get_logger("shoal.gateway.workers")


class WorkerConnection:
    """Connects, asks GetInfo, follows KV events; starts over with growing pauses when the worker goes away."""

    def __init__(
        self,
        address: str,
        index: PrefixIndex,
        on_change: Callable[[worker_pb2.GetInfoResponse | None], None],
    ) -> None:
        self.info: worker_pb2.GetInfoResponse | None = None
        """What the worker serves; None while it cannot be reached."""
        self._address = address
        self._feed = KvEventFeed(address, index)
        self._on_change = on_change
        self._clock = asyncio.get_running_loop().time
        self._heard_s = self._clock()
        self._num_looks = 0
        """Since the last message."""
        self._pause_s = RETRY_FIRST_S
        """Before the next attempt, after one that fails."""
        self._call: Any = None
        """The subscription, while there is one."""
        self._has_events = True
        self._is_lost = False
        self.is_stale = False
        """Whether its events stopped, so that nothing is believed of its cache."""
        self._channel: Any = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub: Any = worker_pb2_grpc.ModelWorkerServiceStub(self._channel)
        self._task = asyncio.create_task(self._run(), name=f"worker {address}")

    async def close(self) -> None:
        """Forgets the worker."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._feed.forget()
        await self._channel.close()
        metrics.KV_EVENT_AGE_S.remove(self._address)

    def look(self) -> None:
        """Notices that events stopped. Called `LOOKS_PER_LIMIT` times within the limit.

        Counts looks, not seconds: when this process itself was stopped, the worker is not to blame.
        """
        if not self._has_events:
            return
        age_s = self._clock() - self._heard_s
        metrics.KV_EVENT_AGE_S.labels(self._address).set(age_s)
        call = self._call
        if call is not None and not (self.info and self.info.kv_heartbeat_ms):
            return  # this worker says nothing while nothing happens
        self._num_looks += 1
        if self._num_looks <= LOOKS_PER_LIMIT:
            return
        self._num_looks = 0
        if not self.is_stale:
            self.is_stale = True
            self._feed.forget()
            if call is not None:
                metrics.KV_RESYNCS.labels(self._address, "silent").inc()
            _log.warning("kv events stopped: picked as if without a cache", worker=self._address, age_s=round(age_s, 1))
        if call is not None:
            call.cancel()  # another subscription may fare better

    async def _run(self) -> None:
        while True:
            try:
                info = await self._stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=INFO_TIMEOUT_S)
                self._feed.expect_epoch(info.epoch)
                self._set_info(info)
                await self._follow_events()
            except grpc.RpcError as error:
                await self._lose(error)
            except Exception:
                self._set_info(None)
                _log.exception("following a worker failed", worker=self._address)
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, guards nothing
            self._pause_s = min(2 * self._pause_s, RETRY_MOST_S)

    async def _follow_events(self) -> None:
        """Returns or raises RpcError when the stream ends for good."""
        num_gaps = 0
        while True:
            call = self._call = self._stub.SubscribeKvEvents(self._feed.next_request)
            try:
                while (event := await call.read()) is not EOF:
                    self._hear()
                    self._feed.apply(event)
                    num_gaps = 0
                return
            except EventGap as gap:
                num_gaps += 1
                metrics.KV_RESYNCS.labels(self._address, "gap").inc()
                _log.warning("kv events out of step", worker=self._address, problem=str(gap))
                if num_gaps >= MAX_GAPS:
                    self._feed.forget()
                    raise
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self.is_stale or (task is not None and task.cancelling()):
                    raise
            except grpc.RpcError as error:
                if _code(error) != grpc.StatusCode.UNIMPLEMENTED:
                    raise
                await self._watch_without_events()
            finally:
                self._call = None
                call.cancel()

    def _hear(self) -> None:
        self._heard_s = self._clock()
        self._num_looks = 0
        self._pause_s = RETRY_FIRST_S
        self._has_events = True
        self._is_lost = False
        if self.is_stale:
            self.is_stale = False
            _log.info("kv events flow again", worker=self._address)

    async def _watch_without_events(self) -> None:
        """A worker that tells nothing about its cache still serves; its life is watched by asking again."""
        self._has_events = False
        while True:
            await asyncio.sleep(RETRY_MOST_S)
            await self._stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=INFO_TIMEOUT_S)
            self._pause_s = RETRY_FIRST_S

    async def _lose(self, error: grpc.RpcError) -> None:
        """Its events, or itself: a worker that still answers goes on serving."""
        if not self._is_lost:
            self._is_lost = True
            metrics.KV_RESYNCS.labels(self._address, "lost").inc()
            _log.info("worker lost", worker=self._address, code=_code(error).name)
        try:
            self._set_info(await self._stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=LOST_TIMEOUT_S))
        except grpc.RpcError:
            self._set_info(None)

    def _set_info(self, info: worker_pb2.GetInfoResponse | None) -> None:
        if info != self.info:
            self.info = info
            self._on_change(info)


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.aio.AioRpcError)
    return error.code()
