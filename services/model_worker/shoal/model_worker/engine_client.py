"""The front's side of the engine: starts the process, sends it requests, and hands its output to their streams."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import replace

import msgspec
import structlog

from shoal.model_worker.channel import ChannelClosed, pack_frame, read_frame
from shoal.model_worker.coalescing import Coalescer
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.failure import Failure
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.messages import (
    Add,
    Broken,
    Cancel,
    Command,
    EngineInfo,
    Loading,
    Ready,
    Report,
    StepFrame,
    Stop,
    decode_report,
    encode,
)
from shoal.model_worker.metrics import WorkerMetrics
from shoal.model_worker.request import Request
from shoal.model_worker.scheduler import SchedulerStats
from shoal.model_worker.streams import ChoiceOutput, RequestStream

STOP_TIMEOUT_S = 5.0
_DIED = Failure("UNAVAILABLE", "the worker's engine died; the request can be resumed on another worker", "", 1.0)
_log = structlog.get_logger("shoal.model_worker")


class EngineFailed(Exception):
    """The engine did not start, or is gone."""


class EngineClient:
    """One engine process. Made by `start`; all methods belong to one event loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        coalescer: Coalescer,
        kv_events: KvEventHub,
        metrics: WorkerMetrics,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._coalescer = coalescer
        self._kv_events = kv_events
        self._metrics = metrics
        self._outputs: dict[int, ChoiceOutput] = {}  # by stream id, of unfinished completions
        self._num_requests = 0
        self._stream_ids = itertools.count(1)
        self._idle = asyncio.Event()
        self._idle.set()
        self.died = asyncio.Event()
        """Set when the engine is gone."""
        self.info: EngineInfo | None = None
        self.stats = SchedulerStats()
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, config: WorkerConfig, *, coalescer: Coalescer, kv_events: KvEventHub, metrics: WorkerMetrics
    ) -> EngineClient:
        """Starts the process and hands it its configuration; `load` waits for its model."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # nothing in the working directory may shadow a module
                "-m",
                "shoal.model_worker.engine_process",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=_engine_environment(config),
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        writer.write(pack_frame(msgspec.msgpack.encode(config)))
        return cls(process, reader, writer, coalescer=coalescer, kv_events=kv_events, metrics=metrics)

    async def load(self, timeout_s: float, on_progress: Callable[[str, float], None]) -> EngineInfo:
        """Waits until the engine is ready. Raises EngineFailed with what went wrong."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    match await self._receive():
                        case Loading(stage, fraction):
                            on_progress(stage, fraction)
                        case Ready(info):
                            self.info = info
                            self._following = asyncio.create_task(self._follow(), name="engine reports")
                            return info
                        case Broken(message):
                            raise EngineFailed(message)
                        case StepFrame():
                            raise EngineFailed("the engine ran a step before it was ready")
        except TimeoutError:
            raise EngineFailed(f"the model was not loaded within load_timeout_s = {timeout_s:g} s") from None
        except ChannelClosed:
            code = await self._process.wait()
            raise EngineFailed(f"the engine ended with status {code} while it was starting") from None

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
            stream.fail(_DIED)
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
            if not self.died.is_set():
                self._send(Cancel(stream.request.stream_id))
            self._forget(stream)
            stream.fail(failure)
        return len(streams)

    async def wait_idle(self) -> None:
        """Returns when the engine works on nothing. The caller sets the deadline."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Ends the process; kills it when it is still loading, or takes longer than STOP_TIMEOUT_S."""
        try:
            if self.info is not None and not self.died.is_set():
                self._send(Stop())
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            _log.warning("the engine did not end when told to", timeout_s=STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._following is not None:
            await self._following
        self._writer.close()

    async def _receive(self) -> Report:
        return decode_report(await read_frame(self._reader))

    async def _follow(self) -> None:
        """Hands reports over until the engine is gone."""
        try:
            while True:
                report = await self._receive()
                if isinstance(report, StepFrame):
                    self._deliver(report)
                elif isinstance(report, Broken):
                    _log.error("the engine ended", reason=report.message)
        except ChannelClosed:
            pass
        except (msgspec.DecodeError, ValueError) as error:
            _log.error("the engine's reports make no sense; it is ended", exc_info=error)
            self._process.kill()
        finally:
            self.died.set()
            self.fail_all(_DIED)

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
            self._kv_events.publish(frame.kv_events)

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

    def _send(self, command: Command) -> None:
        # Not awaited: what can wait here is bounded, for the front admits no more requests than the engine takes.
        self._writer.write(pack_frame(encode(command)))


def _engine_environment(config: WorkerConfig) -> dict[str, str]:
    """Thread pools read their settings when they are imported, before any setting could reach them.

    GOMP_SPINCOUNT: by default libgomp's threads spin for milliseconds when torch has nothing for them, on cores that
    our own threads, the gateway and Envoy want (docs/adr/0003-native-cpu-ops.md has the numbers).
    """
    threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    return {"GOMP_SPINCOUNT": "1000", **os.environ, **threads}
