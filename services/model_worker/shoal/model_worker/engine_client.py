"""The front's side of the engine: starts the process, sends it requests, and hands its output to their streams."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import msgspec
import structlog

from shoal.model_worker.channel import ChannelClosed
from shoal.model_worker.coalescing import Coalescer
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_child import ENGINE_MODULE, EngineChild
from shoal.model_worker.engine_failure import EngineFailure
from shoal.model_worker.engine_watch import EngineWatch
from shoal.model_worker.failure import Failure
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.messages import Add, Broken, Cancel, EngineInfo, Loading, Ready, StepFrame, Stop
from shoal.model_worker.metrics import WorkerMetrics
from shoal.model_worker.request import Request
from shoal.model_worker.scheduler import SchedulerStats
from shoal.model_worker.streams import ChoiceOutput, RequestStream

STOP_TIMEOUT_S = 5.0
TRACE_TIME_S = 0.2
"""For a hung engine to write where it is."""
_log = structlog.get_logger("shoal.model_worker")


class EngineFailed(Exception):
    """The engine did not start."""


class EngineClient:
    """One engine process. Made by `start`; all methods belong to one event loop."""

    def __init__(
        self,
        child: EngineChild,
        *,
        stall_timeout_s: float,
        coalescer: Coalescer,
        kv_events: KvEventHub,
        metrics: WorkerMetrics,
    ) -> None:
        """stall_timeout_s: see `WorkerConfig.engine_stall_timeout_s`; 0: no limit."""
        self._child = child
        self._watch = EngineWatch(stall_timeout_s) if stall_timeout_s else None
        self._stall_timeout_s = stall_timeout_s
        self._coalescer = coalescer
        self._kv_events = kv_events
        self._metrics = metrics
        self._outputs: dict[int, ChoiceOutput] = {}  # by stream id, of unfinished completions
        self._num_requests = 0
        self._stream_ids = itertools.count(1)
        self._idle = asyncio.Event()
        self._idle.set()
        self.died = asyncio.Event()
        """Set when the engine is gone or given up."""
        self.failure: EngineFailure | None = None
        """What ended it, unless it was told to end."""
        self.info: EngineInfo | None = None
        self.stats = SchedulerStats()
        self._is_stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        config: WorkerConfig,
        *,
        coalescer: Coalescer,
        kv_events: KvEventHub,
        metrics: WorkerMetrics,
        module: str = ENGINE_MODULE,
    ) -> EngineClient:
        """Starts the process and hands it its configuration; `load` waits for its model. module: what to run."""
        child = await EngineChild.start(config, module)
        stall_timeout_s = config.engine_stall_timeout_s or 0.0
        return cls(child, stall_timeout_s=stall_timeout_s, coalescer=coalescer, kv_events=kv_events, metrics=metrics)

    async def load(self, timeout_s: float, on_progress: Callable[[str, float], None]) -> EngineInfo:
        """Waits until the engine is ready. Raises EngineFailed with what went wrong."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    match await self._child.receive():
                        case Loading(stage, fraction):
                            on_progress(stage, fraction)
                        case Ready(info):
                            self._begin(info)
                            return info
                        case Broken(failure):
                            self._refuse(failure)
                        case StepFrame():
                            self._refuse(EngineFailure("protocol", "the engine ran a step before it was ready"))
        except TimeoutError:
            text = f"the model was not loaded within load_timeout_s = {timeout_s:g} s"
            self._refuse(EngineFailure("stalled", text))
        except ChannelClosed:
            end = await self._child.wait(STOP_TIMEOUT_S) or "without closing its files"
            self._refuse(EngineFailure("died", f"the engine ended ({end}) while it was starting"))

    def _begin(self, info: EngineInfo) -> None:
        self.info = info
        self._tasks.append(asyncio.create_task(self._follow(), name="engine reports"))
        if self._watch is not None:
            self._tasks.append(asyncio.create_task(self._kill_when_stalled(self._watch), name="engine stall watch"))

    def _refuse(self, failure: EngineFailure) -> NoReturn:
        self._metrics.engine_failed(failure.reason)
        raise EngineFailed(failure.message) from None

    @property
    def num_requests(self) -> int:
        """Requests that the engine still works on."""
        return self._num_requests

    def submit(self, request: Request) -> RequestStream:
        """Sends a request to the engine; `request.stream_id` is assigned here. Pair with `close`."""
        first = next(self._stream_ids)
        for _ in range(request.sampling.n - 1):
            next(self._stream_ids)
        stream = RequestStream.open(replace(request, stream_id=first))
        if self.died.is_set():
            stream.fail(msgspec.structs.replace(self._gone(), reason="UNAVAILABLE"))  # none of its doing
            return stream
        for output in stream.choices:
            self._outputs[first + output.choice] = output
        self._num_requests += 1
        self._idle.clear()
        self._send(Add(stream.request))
        return stream

    def close(self, stream: RequestStream) -> None:
        """The call is over: forgets the stream, and cancels the request if the engine still works on it."""
        if stream.num_unfinished:
            self._send(Cancel(stream.request.stream_id))
            self._forget(stream)
        stream.choices.clear()

    def fail_all(self, failure: Failure) -> int:
        """Ends every request with an error; returns how many there were."""
        streams = {output.stream for output in self._outputs.values()}
        for stream in streams:
            self._send(Cancel(stream.request.stream_id))
            self._forget(stream)
            stream.fail(failure)
            self._metrics.failed(failure.reason)
        return len(streams)

    async def wait_idle(self) -> None:
        """Returns when the engine works on nothing. The caller sets the deadline."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Ends the process: asks an engine that serves, kills one that is loading or takes longer than STOP_TIMEOUT_S.

        Returns after twice that at the latest.
        """
        self._is_stopping = True
        if self.info is not None and not self.died.is_set():
            self._child.send(Stop())
            if await self._child.wait(STOP_TIMEOUT_S) is None:
                _log.warning("the engine did not end when told to", timeout_s=STOP_TIMEOUT_S)
        end = await self._child.end(STOP_TIMEOUT_S)
        if end is None:
            _log.error("the killed engine does not end: it is stuck in a driver", timeout_s=STOP_TIMEOUT_S)
        elif self.died.is_set():
            _log.error("the engine's process ended", end=end)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        """Hands reports over until the engine is gone."""
        try:
            while True:
                report = await self._child.receive()
                if isinstance(report, StepFrame):
                    self._deliver(report)
                    if self._watch is not None:
                        self._watch.heard(busy=self._num_requests > 0)
                elif isinstance(report, Broken):
                    self._give_up(report.failure)
                    return
        except ChannelClosed:
            self._give_up(EngineFailure("died", "the engine's process vanished without a word"))
        except (msgspec.DecodeError, ValueError) as error:
            self._give_up(EngineFailure("protocol", f"the engine's reports make no sense: {error}"))
        except Exception as error:
            _log.error("the engine's reports cannot be handed over", exc_info=error)
            self._give_up(EngineFailure("protocol", f"handing its reports over failed: {type(error).__name__}"))

    async def _kill_when_stalled(self, watch: EngineWatch) -> None:
        await watch.wait_stalled()
        self._child.signal(signal.SIGUSR1)
        await asyncio.sleep(TRACE_TIME_S)
        self._give_up(
            EngineFailure(
                "stalled",
                f"the engine had work and ended no step for engine_stall_timeout_s = {self._stall_timeout_s:g} s, so "
                f"it was killed; {self._num_requests} requests were open",
            )
        )

    def _give_up(self, failure: EngineFailure) -> None:
        """The engine is gone, or is made to go: every request ends with an error. Only the first reason counts."""
        if self.died.is_set():
            return
        self.died.set()
        self._child.signal(signal.SIGKILL)
        if not self._is_stopping:
            self.failure = failure
            self._metrics.engine_failed(failure.reason)
            _log.error("the engine ended", reason=failure.reason, message=failure.message)
        self.fail_all(self._gone())

    def _gone(self) -> Failure:
        """What requests get when the engine is no more."""
        return (self.failure or EngineFailure("died", "")).for_clients()

    def _deliver(self, frame: StepFrame) -> None:
        now_s = time.monotonic()
        outputs, metrics = self._outputs, self._metrics
        self.stats = frame.stats
        for stream_id, num_cached in frame.started:
            if (output := outputs.get(stream_id)) is not None:
                output.stream.num_cached_tokens = num_cached
        for stream_id, entries in frame.prompt_logprobs:
            if (output := outputs.get(stream_id)) is not None:
                output.stream.prompt_logprobs = entries
        for stream_id, entry in frame.logprobs:
            if (output := outputs.get(stream_id)) is not None:
                output.logprobs.append(entry)
        stream_ids, token_ids = array("q", frame.stream_ids), array("i", frame.token_ids)
        deliver = self._coalescer.for_streams(len(outputs))
        for stream_id, token_id in zip(stream_ids, token_ids, strict=True):
            output = outputs.get(stream_id)
            if output is None:
                continue  # cancelled while the step ran
            metrics.token(output, now_s)
            output.token_ids.append(token_id)
            output.num_tokens += 1
            output.last_token_s = now_s
            deliver(output)
        for finished in frame.finished:
            if (output := outputs.pop(finished.stream_id, None)) is not None:
                output.stream.finish(output.choice, finished)
                metrics.finished(finished.reason)
                if output.stream.num_unfinished == 0:
                    self._ended()
        for stream_id, failure in frame.failed:
            if (output := outputs.get(stream_id)) is not None:
                self._forget(output.stream)
                output.stream.fail(failure)
                metrics.failed(failure.reason)
        metrics.step(frame)
        if frame.kv_events:
            self._kv_events.publish_device(frame.kv_events)

    def _forget(self, stream: RequestStream) -> None:
        if stream.num_unfinished:
            for output in stream.choices:
                self._outputs.pop(stream.request.stream_id + output.choice, None)
            stream.num_unfinished = 0
            self._ended()

    def _ended(self) -> None:
        self._num_requests -= 1
        if self._num_requests == 0:
            self._idle.set()

    def _send(self, command: Add | Cancel) -> None:
        if self.died.is_set():
            return
        self._child.send(command)
        if self._watch is not None:
            self._watch.asked()
