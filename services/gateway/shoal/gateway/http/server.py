"""uvicorn inside the gateway's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.applications import Starlette

START_TIMEOUT_S: Final = 10.0


class HttpServer:
    """A listening HTTP server. Made by `start_http`; ended by `stop`."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None], port: int) -> None:
        self._server = server
        self._task = task
        self.port = port

    async def stop(self, grace_s: float) -> None:
        """Closes the listener and idle connections, lets answers finish within `grace_s`, then cuts them."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        await self._task


class _Embedded(uvicorn.Server):  # type: ignore[misc]  # uvicorn is followed nowhere else
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process's `main`, which drains both servers together."""
        yield


async def start_http(app: Starlette, host: str, port: int) -> HttpServer:
    """Listens. Raises OSError naming the address when it cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0") from error
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        # Envoy keeps idle connections for an hour; closing one first could meet the request it is about to send.
        timeout_keep_alive=3660,
    )
    server = _Embedded(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    async with asyncio.timeout(START_TIMEOUT_S):
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    if task.done():
        task.result()
    return HttpServer(server, task, listener.getsockname()[1])
