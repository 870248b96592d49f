"""Runs a real tokenizer service in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from shoal.api.tokenizer.v1 import tokenizer_pb2_grpc
from support.logged_process import LoggedProcess


async def launch_tokenizer(*flags: str) -> LoggedProcess:
    """Starts a service and does not wait for it. The caller ends it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return await LoggedProcess.launch("shoal.tokenizer.main", *flags, env=env)


@asynccontextmanager
async def start_tokenizer(*flags: str) -> AsyncIterator[LoggedProcess]:
    """A service that serves; ended by SIGTERM, which must end it: its render processes go with it."""
    async with await launch_tokenizer(*flags) as service:
        try:
            await service.wait_logged("serving")
            yield service
        finally:
            service.signal(signal.SIGTERM)
            await service.wait_ended()


@asynccontextmanager
async def tokenizer_stub(service: LoggedProcess) -> AsyncIterator[tokenizer_pb2_grpc.TokenizerServiceAsyncStub]:
    """A client of the service."""
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    async with grpc.aio.insecure_channel(service.address, options=options) as channel:
        yield tokenizer_pb2_grpc.TokenizerServiceStub(channel)
