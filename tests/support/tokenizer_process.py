"""Runs a real tokenizer service in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from shoal.api.tokenizer.v1 import tokenizer_pb2_grpc

START_TIMEOUT_S = 60.0


class TokenizerProcess:
    """A running service. Made by `start_tokenizer`."""

    def __init__(self, process: Process) -> None:
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

    async def wait_logged(self, event: str) -> None:
        """Returns once the event was logged; fails when the process ends without it."""
        async with asyncio.timeout(START_TIMEOUT_S), self._more:
            await self._more.wait_for(lambda: self._ended or any(line["event"] == event for line in self.logs))
        if not any(line["event"] == event for line in self.logs):
            raise AssertionError(f"the service ended without logging {event!r}: {self.logs}")

    async def wait_ended(self) -> int:
        """The exit code."""
        code = await asyncio.wait_for(self.process.wait(), START_TIMEOUT_S)
        await self._reading
        return code

    async def metrics(self) -> str:
        """The text of /metrics."""
        url = f"http://{self.logged('metrics')['address']}/metrics"

        def read() -> str:
            with urllib.request.urlopen(url, timeout=10) as response:
                return str(response.read().decode())

        return await asyncio.to_thread(read)

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


async def launch_tokenizer(*flags: str) -> TokenizerProcess:
    """Starts a service and does not wait for it. The caller ends it."""
    command = (sys.executable, "-P", "-m", "shoal.tokenizer.main", "--port=0", "--metrics-port=0", *flags)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return TokenizerProcess(await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=environment))


@asynccontextmanager
async def start_tokenizer(*flags: str) -> AsyncIterator[TokenizerProcess]:
    """A service that serves; ended by SIGTERM, and killed when that does not end it."""
    service = await launch_tokenizer(*flags)
    try:
        await service.wait_logged("serving")
        yield service
    finally:
        if service.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                service.process.send_signal(signal.SIGTERM)
        try:
            await service.wait_ended()
        except TimeoutError:
            service.process.kill()
            await service.wait_ended()
            raise


@asynccontextmanager
async def tokenizer_stub(service: TokenizerProcess) -> AsyncIterator[tokenizer_pb2_grpc.TokenizerServiceAsyncStub]:
    """A client of the service."""
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    async with grpc.aio.insecure_channel(service.address, options=options) as channel:
        yield tokenizer_pb2_grpc.TokenizerServiceStub(channel)
