"""Runs a real gateway process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.logged_process import LoggedProcess


class GatewayProcess(LoggedProcess):
    """A gateway. Made by `start_gateway`."""

    @property
    def http_port(self) -> int:
        return int(self.logged("listening")["http"])


async def launch_gateway(*flags: str) -> GatewayProcess:
    """Starts a gateway and does not wait for it. The caller ends it."""
    return await GatewayProcess.launch("shoal.gateway.main", "--http-port=0", "--log-format=json", *flags)


@asynccontextmanager
async def start_gateway(*flags: str) -> AsyncIterator[GatewayProcess]:
    """A gateway that serves; killed at the end if it still runs."""
    async with await launch_gateway(*flags) as gateway:
        await gateway.wait_logged("serving")
        yield gateway
