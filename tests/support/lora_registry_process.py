"""Runs a real LoRA registry in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.logged_process import LoggedProcess


async def launch_registry(folder: Path, *flags: str) -> LoggedProcess:
    """Starts one that keeps adapters in `folder`, and does not wait for it. The caller ends it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    return await LoggedProcess.launch("shoal.lora_registry.main", f"--folder={folder}", *flags, env=env)


@asynccontextmanager
async def start_registry(folder: Path, *flags: str) -> AsyncIterator[LoggedProcess]:
    """A registry that serves; ended by SIGTERM, which must end it with status 0."""
    async with await launch_registry(folder, *flags) as service:
        await service.wait_logged("serving")
        yield service
        service.signal(signal.SIGTERM)
        assert await service.wait_ended() == 0
