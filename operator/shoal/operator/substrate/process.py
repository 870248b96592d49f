"""One started process, in a process group of its own so that the terminal's Ctrl-C reaches the supervisor alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from shoal.operator.planner import ProcessPlan
from shoal.operator.substrate.guard import Guard
from shoal.operator.substrate.logs import open_log

_LOOPBACK = ("127.0.0.1", "localhost")


class RunningProcess:
    """A process and whatever it started. Whoever starts it must `stop` or `kill` it and await `wait`."""

    def __init__(self, process: asyncio.subprocess.Process, guard: Guard) -> None:
        self._process = process
        self._guard = guard
        self._ended = asyncio.ensure_future(self._reap())

    @classmethod
    async def start(cls, plan: ProcessPlan, environ: Mapping[str, str], log_path: Path, guard: Guard) -> RunningProcess:
        """Starts `plan.argv`; its output goes to the end of `log_path`. Raises OSError when it cannot be executed."""
        with open_log(log_path) as log:
            process = await asyncio.create_subprocess_exec(
                *plan.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environ, **plan.env},
                # Not a session: schedulers that group by session would share the cores evenly between the processes,
                # whatever their niceness, and the workers' engines are meant to yield.
                process_group=0,
            )
        guard.add(process.pid)
        return cls(process, guard)

    @property
    def pid(self) -> int:
        """Also the number of its process group."""
        return self._process.pid

    async def wait(self) -> int:
        """Its exit code, negative for a signal. Any number of callers; cancelling one disturbs nothing."""
        return await asyncio.shield(self._ended)

    async def stop(self, drain_timeout_s: float) -> int:
        """SIGTERM to the process itself, and SIGKILL to all of its group once `drain_timeout_s` is over."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.wait(), drain_timeout_s)
        self.kill()
        return await self.wait()

    def kill(self) -> None:
        """SIGKILL to the group, at once."""
        if not self._ended.done():
            self._kill_group()

    async def _reap(self) -> int:
        code = await self._process.wait()
        self._kill_group()  # an engine must not outlive its front
        self._guard.remove(self.pid)
        return code

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def base_environment(environ: Mapping[str, str], marker: tuple[str, str]) -> dict[str, str]:
    """The supervisor's environment without SHOAL_* (settings come from the manifest alone), with the run's marker.

    Loopback is taken out of any proxy's hands: gRPC would otherwise send calls to 127.0.0.1 through `http_proxy`.
    """
    result = {name: value for name, value in environ.items() if not name.startswith("SHOAL_")}
    for name in ("no_proxy", "NO_PROXY"):
        result[name] = ",".join(filter(None, (result.get(name, ""), *_LOOPBACK)))
    return result | dict([marker])


def describe_exit(code: int) -> str:
    """`exit code 2` or `killed by SIGSEGV`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
