"""Runs a real model worker, both of its processes, and watches it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from shoal.api.worker.v1 import worker_pb2_grpc

START_TIMEOUT_S = 60.0


class WorkerProcess:
    """A running worker. Made by `start_worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.logs: list[dict[str, Any]] = []
        self._more = asyncio.Condition()
        self._ended = False
        self._reading = asyncio.create_task(self._read())

    @property
    def address(self) -> str:
        return str(self.logged("serving")["address"])

    def logged(self, event: str) -> dict[str, Any]:
        """The first log line of an event."""
        return next(line for line in self.logs if line["event"] == event)

    async def wait_logged(self, event: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s), self._more:
            await self._more.wait_for(lambda: self._ended or any(line["event"] == event for line in self.logs))
        if not any(line["event"] == event for line in self.logs):
            raise AssertionError(f"the worker ended without logging {event!r}: {self.logs}")
        return self.logged(event)

    def engine_pid(self) -> int:
        pid = self.process.pid
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    async def wait_ended(self, timeout_s: float = 30.0) -> int:
        status = await asyncio.wait_for(self.process.wait(), timeout_s)
        await self._reading
        return status

    def metric(self, name: str) -> float:
        """A sample of /metrics without labels, or with exactly the labels in `name`."""
        with urllib.request.urlopen(f"http://{self.logged('metrics')['address']}/metrics", timeout=5) as response:
            for line in response.read().decode().splitlines():
                sample, _, value = line.rpartition(" ")
                if sample == f"shoal_worker_{name}":
                    return float(value)
        raise KeyError(name)

    async def wait_metric(self, name: str, condition: Callable[[float], bool], timeout_s: float = 10.0) -> float:
        """Scrapes until the condition holds: metrics have no event to wait for."""
        async with asyncio.timeout(timeout_s):
            while not condition(value := await asyncio.to_thread(self.metric, name)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return value

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": line.decode(errors="replace").rstrip()}
            async with self._more:
                self.logs.append(entry)
                self._more.notify_all()
        async with self._more:
            self._ended = True
            self._more.notify_all()


async def launch_worker(*flags: str) -> WorkerProcess:
    """Starts a worker and does not wait for it. The caller ends it."""
    return WorkerProcess(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "shoal.model_worker.main",
            "--port=0",
            "--metrics-port=0",
            "--log-format=json",
            *flags,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    )


@asynccontextmanager
async def start_worker(*flags: str) -> AsyncIterator[WorkerProcess]:
    """A worker that serves; killed at the end if it still runs."""
    worker = await launch_worker(*flags)
    try:
        await worker.wait_logged("serving")
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.process.kill()
        await worker.wait_ended()


@asynccontextmanager
async def worker_stub(
    worker: WorkerProcess, options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[worker_pb2_grpc.ModelWorkerServiceAsyncStub]:
    """A client of the worker."""
    async with grpc.aio.insecure_channel(worker.address, options=options) as channel:
        yield worker_pb2_grpc.ModelWorkerServiceStub(channel)
