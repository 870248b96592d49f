"""The engine process as its front sees it: started, talked to, ended. No wait here depends on its cooperation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys

import msgspec

from shoal.model_worker.channel import pack_frame, read_frame
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.messages import Command, Report, decode_report, encode

ENGINE_MODULE = "shoal.model_worker.engine_process"


class EngineChild:
    """A child process and its channel. Made by `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer

    @classmethod
    async def start(cls, config: WorkerConfig, module: str = ENGINE_MODULE) -> EngineChild:
        """Starts `python -m module` and hands it its configuration."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # nothing in the working directory may shadow a module
                "-m",
                module,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment(config),
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 20)
        writer.write(pack_frame(msgspec.msgpack.encode(config)))
        return cls(process, reader, writer)

    def send(self, command: Command) -> None:
        """Not awaited: what can wait here is bounded, for the front admits no more requests than the engine takes."""
        self._writer.write(pack_frame(encode(command)))

    async def receive(self) -> Report:
        """The next report. ChannelClosed when the process is gone; ValueError or msgspec's errors for nonsense."""
        return decode_report(await read_frame(self._reader))

    def signal(self, signum: signal.Signals) -> None:
        """Sends a signal; does nothing when the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    async def wait(self, timeout_s: float) -> str | None:
        """How the process ended (`exit status 1`, `killed by SIGSEGV`); None when it has not within `timeout_s`."""
        try:
            code = await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            return None
        return f"exit status {code}" if code >= 0 else f"killed by {_signal_name(-code)}"

    async def end(self, timeout_s: float) -> str | None:
        """SIGKILL, unless it has ended, and waits for that to take effect. Returns how it ended, as `wait`.

        None when it has not: a process can be stuck in a driver, where no signal reaches it. The kernel ends it once
        the driver lets go; there is nothing else that could.
        """
        self.signal(signal.SIGKILL)
        ended = await self.wait(timeout_s)
        self._writer.close()
        return ended


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment(config: WorkerConfig) -> dict[str, str]:
    """Thread pools read their settings when they are imported, before any setting could reach them.

    GOMP_SPINCOUNT: by default libgomp's threads spin for milliseconds when torch has nothing for them, on cores that
    our own threads, the gateway and Envoy want (docs/adr/0003-native-cpu-ops.md has the numbers).
    """
    threads = {"OMP_NUM_THREADS": str(config.threads)} if config.threads else {}
    return {"GOMP_SPINCOUNT": "1000", **os.environ, **threads}
