"""Renders chat templates in processes that can be stopped.

Starting a process for every render would take 100 ms; a thread cannot be stopped. So a few processes stay, each renders
one conversation at a time (0.05 ms through two pipes), and one that runs into a limit is dead and gets replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
from prometheus_client import Counter

from shoal.rpc.errors import InvalidArgument, PayloadTooLarge, ResourceExhausted
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.render_protocol import RenderJob, RenderResult, Setup, body_length, pack

_COMMAND: Final = (sys.executable, "-P", "-m", "shoal.tokenizer.render_process")
START_TIMEOUT_S: Final = 30.0
_GRACE_S: Final = 1.0
"""The kernel's timer in the process ends a render; this much later the service stops waiting for that."""
_MAX_RESTART_DELAY_S: Final = 10.0
_PASSED_ON: Final = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
"""Of the environment; a template has no business with tokens and passwords, not even behind the sandbox."""

_RESTARTS = Counter("shoal_tokenizer_render_restarts_total", "Render processes replaced after they ended.", ["reason"])
_log = structlog.get_logger("shoal.tokenizer")


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What a template may use."""

    timeout_s: float
    memory_bytes: int
    max_chars: int
    num_processes: int
    max_pending: int
    """Renders waiting for a process before further ones are refused."""


class Renderer:
    """A pool of render processes. Made by `start`, ended by `stop`; belongs to one event loop."""

    def __init__(self, setup: Setup, limits: RenderLimits) -> None:
        self._setup = setup
        self._limits = limits
        self._idle: asyncio.Queue[_RenderProcess] = asyncio.Queue()
        self._tasks: set[asyncio.Task[object]] = set()
        self._processes: set[_RenderProcess] = set()
        self._num_pending = 0
        self._stopping = asyncio.Event()

    @classmethod
    async def start(
        cls, templates: Mapping[str, str], named_tokens: Mapping[str, str], limits: RenderLimits
    ) -> Renderer:
        """Starts the processes. Raises TokenizerError when a template does not compile."""
        setup = Setup(dict(templates), dict(named_tokens), limits.timeout_s, limits.memory_bytes, limits.max_chars)
        renderer = cls(setup, limits)
        starts = (renderer._add_process() for _ in range(limits.num_processes))
        failures = [result for result in await asyncio.gather(*starts, return_exceptions=True) if result is not None]
        if failures:
            await renderer.stop()
            raise failures[0]
        return renderer

    async def render(self, job: RenderJob) -> str:
        """The rendered text. Raises InvalidArgument, PayloadTooLarge or ResourceExhausted.

        Cancelling it leaves the process to finish on its own; no other caller gets the wrong answer.
        """
        if self._num_pending >= self._limits.max_pending:
            raise ResourceExhausted(f"{self._num_pending} chats are waiting to be rendered, the most allowed")
        self._num_pending += 1
        try:
            async with asyncio.timeout(self._limits.timeout_s * 2 + _GRACE_S):
                process = await self._idle.get()
        except TimeoutError:
            raise ResourceExhausted("no render process became free in time") from None
        finally:
            self._num_pending -= 1
        task = asyncio.create_task(self._exchange(process, job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return self._to_text(await asyncio.shield(task))

    async def stop(self) -> None:
        """Ends every process."""
        self._stopping.set()
        await asyncio.gather(*(process.end() for process in list(self._processes)))
        # What renders fails with its process, and a process that is starting ends itself; cancelling would leak it.
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _exchange(self, process: _RenderProcess, job: RenderJob) -> RenderResult | int:
        """The process's exit code when it ended over the job; a new one is started then."""
        try:
            async with asyncio.timeout(self._limits.timeout_s + _GRACE_S):
                result = await process.exchange(job)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            code = await process.end(exiting=not isinstance(error, TimeoutError))
            self._processes.discard(process)
            if not self._stopping.is_set():
                reason = signal.Signals(-code).name if code < 0 else f"exit {code}"
                _RESTARTS.labels(reason).inc()
                _log.warning("a render process ended and is replaced", reason=reason)
                self._replace()
            return code
        self._idle.put_nowait(process)
        return result

    def _to_text(self, result: RenderResult | int) -> str:
        if isinstance(result, int):
            timed_out = -result in (signal.SIGALRM, signal.SIGKILL)
            problem = f"took longer than {self._limits.timeout_s} s" if timed_out else "ended its process"
            raise ResourceExhausted(
                f"rendering the chat template {problem}; send a shorter conversation",
                retry_after_s=self._limits.timeout_s,
            )
        match result.outcome:
            case "text":
                return result.text
            case "too_long":
                raise PayloadTooLarge(
                    "chat", f"its rendered text is longer than the {self._limits.max_chars} characters allowed"
                )
            case "no_memory":
                raise ResourceExhausted(
                    f"rendering the chat template needs more than the {self._limits.memory_bytes} bytes of memory "
                    "allowed; send a shorter conversation"
                )
            case "template_failed":
                raise InvalidArgument("chat", f"the model's chat template refuses it: {result.text}")

    def _replace(self) -> None:
        task: asyncio.Task[object] = asyncio.create_task(self._add_process_with_retries())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _add_process_with_retries(self) -> None:
        delay_s = 0.1
        while not self._stopping.is_set():
            try:
                await self._add_process()
                return
            except (OSError, TokenizerError) as error:
                _log.error("a render process does not start", error=str(error), retry_in_s=delay_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
            delay_s = min(_MAX_RESTART_DELAY_S, delay_s * 2)

    async def _add_process(self) -> None:
        process = await _RenderProcess.start(self._setup)
        if self._stopping.is_set():
            await process.end()
            return
        self._processes.add(process)
        self._idle.put_nowait(process)


class _RenderProcess:
    """One process and its pipes."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout

    @classmethod
    async def start(cls, setup: Setup) -> _RenderProcess:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        process = cls(await asyncio.create_subprocess_exec(*_COMMAND, stdin=PIPE, stdout=PIPE, env=environment))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                result = await process.exchange(setup)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
            code = await process.end(exiting=not isinstance(error, TimeoutError))
            raise TokenizerError(
                f"a render process was not ready: {error!r}, exit code {code} "
                f"(-{signal.SIGALRM.value}: compiling the chat template took too long)"
            ) from error
        except BaseException:
            await process.end()
            raise
        if result.outcome != "text":
            await process.end()
            raise TokenizerError(f"the chat template does not compile: {result.text}")
        return process

    async def exchange(self, message: msgspec.Struct) -> RenderResult:
        """Sends a frame and awaits the answer. Not reentrant."""
        self._stdin.write(pack(message))
        await self._stdin.drain()
        header = await self._stdout.readexactly(4)
        body = await self._stdout.readexactly(body_length(header))
        return msgspec.msgpack.decode(body, type=RenderResult)

    async def end(self, *, exiting: bool = False) -> int:
        """Kills the process if it lives, and returns its exit code (minus the signal's number after a signal).

        `exiting`: it has closed its pipe, so its own exit code is on the way and more telling.
        """
        if exiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self._process.wait()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        code = await self._process.wait()
        self._stdin.close()
        with contextlib.suppress(ConnectionError, RuntimeError):  # another task may be reading: it meets the end itself
            await self._stdout.read()
        return code
