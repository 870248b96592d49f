"""Runs a service in a process of its own and follows its JSON log to learn where it serves and how it fares."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from typing import Any, Self

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0


class LoggedProcess:
    """A service that writes a JSON object with an `event` a line to its standard error.

    Made by `launch`, which does not wait for the service. As a context manager it is killed at the end if it still
    runs; without one, the caller awaits `wait_ended`. Every wait has a deadline and fails with the whole log.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.logs: list[dict[str, Any]] = []
        """All lines so far; what is not JSON is an event of its own."""
        self._more = asyncio.Condition()
        self._ended = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def launch(cls, module: str, *flags: str, env: Mapping[str, str] | None = None) -> Self:
        """Starts `python -m module` on free ports, in this process's environment unless told otherwise."""
        command = (sys.executable, "-P", "-m", module, "--port=0", "--metrics-port=0", *flags)
        return cls(await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=env))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.signal(signal.SIGKILL)
        await self.wait_ended()

    @property
    def address(self) -> str:
        """Where it serves gRPC; known once "serving" was logged."""
        return str(self.logged("serving")["address"])

    def logged(self, event: str) -> dict[str, Any]:
        """The first log line of an event. Raises LookupError when there is none."""
        for line in self.logs:
            if line["event"] == event:
                return line
        raise LookupError(f"{event!r} is not in the log: {self.logs}")

    async def wait_logged(self, event: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """`logged` as soon as the event is there; fails when the process ends without it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._more:
                await self._more.wait_for(lambda: self._ended or any(line["event"] == event for line in self.logs))
        return self.logged(event)

    def signal(self, signum: signal.Signals) -> None:
        """Sends a signal; does nothing when the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signum)

    async def wait_ended(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """The exit status, once the log is complete. A process that takes longer is killed, and the test fails."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._reading)
                return await self.process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.process.wait()
            raise AssertionError(f"the process did not end within {timeout_s} s: {self.logs}") from None

    def read_metrics(self) -> str:
        """The text of /metrics, for services that log its address as "metrics". Blocks."""
        with urllib.request.urlopen(f"http://{self.logged('metrics')['address']}/metrics", timeout=10) as response:
            return str(response.read().decode())

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
