"""Runs a real gateway process and reads its log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

START_TIMEOUT_S = 30.0


class GatewayProcess:
    """A gateway that was started with `--log-format=json`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.grpc_port = 0
        self.http_port = 0

    async def wait_logged(self, event: str) -> dict[str, Any]:
        """Reads on to the next line with this event."""
        assert self.process.stderr is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in self.process.stderr:
                with contextlib.suppress(ValueError):
                    self.lines.append(json.loads(line))
                    if self.lines[-1]["event"] == event:
                        return self.lines[-1]
        raise AssertionError(f"the gateway ended without logging {event!r}: {self.lines}")

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def wait_ended(self, timeout_s: float = 30.0) -> int:
        """Its exit status."""
        _, rest = await asyncio.wait_for(self.process.communicate(), timeout_s)
        for line in rest.splitlines():
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))
        assert self.process.returncode is not None
        return self.process.returncode


async def launch_gateway(*flags: str) -> GatewayProcess:
    """Starts a gateway and does not wait for it. The caller ends it."""
    ports = ("--port=0", "--http-port=0", "--metrics-port=0", "--log-format=json")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "shoal.gateway.main", *ports, *flags, stderr=asyncio.subprocess.PIPE
    )
    return GatewayProcess(process)


@asynccontextmanager
async def start_gateway(*flags: str) -> AsyncIterator[GatewayProcess]:
    """A gateway that serves; killed at the end if it still runs."""
    gateway = await launch_gateway(*flags)
    try:
        listening = await gateway.wait_logged("listening")
        gateway.grpc_port, gateway.http_port = listening["grpc"], listening["http"]
        await gateway.wait_logged("serving")
        yield gateway
    finally:
        with contextlib.suppress(ProcessLookupError):
            gateway.process.kill()
        await gateway.process.wait()
