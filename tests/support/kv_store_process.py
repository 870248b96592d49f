"""Runs a real KV store in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.logged_process import LoggedProcess


async def launch_kv_store(folder: Path, *flags: str) -> LoggedProcess:
    """Starts a store whose socket is `folder`/kv.sock and does not wait for it. The caller ends it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    sizes = ("--memory-bytes=4194304", "--chunk-bytes=1048576", "--huge-pages=off")
    return await LoggedProcess.launch(
        "shoal.kv_store.main", f"--socket-path={folder / 'kv.sock'}", *sizes, *flags, env=env
    )


@asynccontextmanager
async def start_kv_store(folder: Path, *flags: str) -> AsyncIterator[LoggedProcess]:
    """A store that serves; ended by SIGTERM, which must end it with status 0."""
    async with await launch_kv_store(folder, *flags) as service:
        await service.wait_logged("serving")
        yield service
        service.signal(signal.SIGTERM)
        assert await service.wait_ended() == 0
