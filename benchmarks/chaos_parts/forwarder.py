"""A network between the mesh and a worker that can be taken away: a TCP forwarder that refuses, or swallows."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

_HOST = "127.0.0.1"
_CHUNK_BYTES = 1 << 16
_CONNECT_TIMEOUT_S = 5.0


class Forwarder:
    """Listens on one port for as long as it lives, except while it refuses. Belongs to one event loop."""

    def __init__(self) -> None:
        self.target_port = 0
        """Where connections lead; set it before the first one comes."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listens; on a free port the first time, on the same one later."""
        self._server = await asyncio.start_server(self._accept, _HOST, self.port, reuse_address=True)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Resets all connections and refuses new ones, as a host whose process is gone. `start` ends it."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    def swallow(self) -> None:
        """Connections stay and new ones are taken, but no byte passes, as if the cable were cut. `flow` ends it."""
        self._flows.clear()

    def flow(self) -> None:
        """Bytes pass, those that were held up first: like TCP, which repeats what was lost."""
        self._flows.set()

    async def close(self) -> None:
        """Ends everything."""
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._connect(reader, writer))

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._flows.wait()
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                far_reader, far_writer = await asyncio.open_connection(_HOST, self.target_port)
        except (OSError, TimeoutError):
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        self._spawn(self._pump(reader, far_writer))
        self._spawn(self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
