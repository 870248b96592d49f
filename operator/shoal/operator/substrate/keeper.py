"""Keeps one process of a plan running: starts it, waits for it, watches it, starts it again, ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shoal.operator.planner import ProcessPlan
from shoal.operator.substrate.events import Event, OnEvent, State
from shoal.operator.substrate.failures import ProcessFailed
from shoal.operator.substrate.guard import Guard
from shoal.operator.substrate.loading import Loading, LoadingLog
from shoal.operator.substrate.logs import read_tail
from shoal.operator.substrate.membership import Membership
from shoal.operator.substrate.options import SupervisorOptions
from shoal.operator.substrate.probes import probe
from shoal.operator.substrate.process import RunningProcess, describe_exit

_T = TypeVar("_T")
_USAGE_EXIT_CODE = 2
"""How every service ends when its settings are wrong: trying again cannot help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all keepers of a mesh share."""

    environ: Mapping[str, str]
    log_dir: Path
    guard: Guard
    membership: Membership
    options: SupervisorOptions
    on_event: OnEvent


@dataclass(frozen=True, slots=True)
class _End:
    """Why a process is no longer running."""

    reason: str
    permanent: bool = False


class Keeper:
    """Runs one process until told to stop. `run` is the only task; the other methods steer it."""

    def __init__(self, plan: ProcessPlan, around: Surroundings) -> None:
        self.plan = plan
        self.ready = asyncio.Event()
        """Set at the first time the process is ready, and never cleared."""
        self.is_ready = False
        self._around = around
        self._options = around.options
        self._stop = asyncio.Event()
        self._killed = False
        self._process: RunningProcess | None = None
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """Of the running process, if there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def log_path(self) -> Path:
        """Where the process's output goes, over all of its starts."""
        return self._around.log_dir / f"{self.plan.name}.log"

    @property
    def log_paths(self) -> list[Path]:
        """All logs of the process: its output, and what it writes by itself."""
        return [self.log_path, *map(Path, self.plan.log_files)]

    def request_stop(self) -> None:
        """Makes `run` end its process and return."""
        self._stop.set()

    def kill(self) -> None:
        """Makes `run` return without any draining."""
        self._killed = True
        self._stop.set()
        if self._process is not None:
            self._process.kill()

    async def run(self, dependencies: Sequence[Keeper]) -> None:
        """Returns after `request_stop` or `kill`. Raises ProcessFailed when the process never became ready."""
        self._report(State.WAITING)
        for dependency in dependencies:
            if await self._unless_stopped(dependency.ready.wait()) is None:
                self._report(State.STOPPED)
                return
        while not self._stop.is_set():
            end = await self._run_once()
            if end is None:
                break
            self._failures += 1
            self._give_up_if_hopeless(end)
            await self._back_off(end)
        self._report(State.STOPPED)

    async def _run_once(self) -> _End | None:
        """One life of the process. None when it was ended because of a stop."""
        self._report(State.STARTING)
        loading_log = LoadingLog(self.log_path)
        try:
            process = await RunningProcess.start(self.plan, self._around.environ, self.log_path, self._around.guard)
        except OSError as error:
            return _End(f"cannot execute {self.plan.argv[0]}: {error.strerror or error}", permanent=True)
        self._process = process
        try:
            end = await self._unless_stopped(self._live(process, loading_log))
        finally:
            self.is_ready = False
            try:
                self._around.membership.leave(self.plan.serves)
            finally:
                await self._end_process(process)
                self._process = None
        return end

    async def _live(self, process: RunningProcess, loading_log: LoadingLog) -> _End:
        """Follows the process from its start to its end."""
        end = await self._await_ready(process, loading_log)
        if end is not None:
            return end
        ready_since_s = time.monotonic()
        self.is_ready = True
        self._around.membership.join(self.plan.serves)
        self._report(State.READY, self.plan.readiness.target)
        self.ready.set()
        end = await self._watch(process)
        if time.monotonic() - ready_since_s >= self._options.stable_s:
            self._failures = 0
        return end

    async def _await_ready(self, process: RunningProcess, loading_log: LoadingLog) -> _End | None:
        readiness = self.plan.readiness
        reported_s = time.monotonic()
        deadline_s = reported_s + readiness.deadline_s
        detail, loading = "", Loading("", None)
        while time.monotonic() < deadline_s:
            code = await _within(process.wait(), self._options.probe_interval_s)
            if code is not None:
                return _End(describe_exit(code), permanent=code == _USAGE_EXIT_CODE)
            result = await probe(readiness, self._options.probe_timeout_s)
            if result.ready:
                return None
            detail = result.detail
            said = loading_log.read()
            loading = said or loading
            if said or time.monotonic() - reported_s >= self._options.start_report_interval_s:
                reported_s = time.monotonic()
                self._report(State.STARTING, loading.stage, loading.fraction)
        return _End(f"not ready after {readiness.deadline_s:g} s ({detail})")

    async def _watch(self, process: RunningProcess) -> _End:
        """Returns when the process ends, or answers nothing for too long."""
        failures = 0
        last_answer_s = time.monotonic()
        while True:
            code = await _within(process.wait(), self._options.health_interval_s)
            if code is not None:
                return _End(describe_exit(code))
            result = await probe(self.plan.readiness, self._options.probe_timeout_s)
            if result.answered:
                last_answer_s = time.monotonic()
            if time.monotonic() - last_answer_s > self._options.hang_timeout_s:
                process.kill()
                return _End(f"answered no health check for {self._options.hang_timeout_s:g} s")
            failures = 0 if result.ready else failures + 1
            self._report_health(failures, result.detail)

    def _report_health(self, failures: int, detail: str) -> None:
        if failures == self._options.health_failures:
            self.is_ready = False
            self._report(State.UNHEALTHY, detail)
        elif failures == 0 and not self.is_ready:
            self.is_ready = True
            self._report(State.READY, self.plan.readiness.target)

    def _give_up_if_hopeless(self, end: _End) -> None:
        if self.ready.is_set():
            return
        if end.permanent or self._failures >= self._options.max_start_attempts:
            self._report(State.FAILED, end.reason)
            raise ProcessFailed(self.plan.name, end.reason, read_tail(self.log_path), str(self.log_path))

    async def _back_off(self, end: _End) -> None:
        delay_s = min(self._options.first_backoff_s * 2 ** (self._failures - 1), self._options.max_backoff_s)
        detail = f"{end.reason}; starting again in {delay_s:g} s"
        if self._failures >= self._options.crash_loop_after:
            detail = f"{detail} (failure {self._failures} in a row)\n{read_tail(self.log_path)}".rstrip()
            self._report(State.CRASH_LOOP, detail)
        else:
            self._report(State.BACKOFF, detail)
        await _within(self._stop.wait(), delay_s)

    async def _end_process(self, process: RunningProcess) -> None:
        if self._killed or not self._stop.is_set():
            process.kill()
            await process.wait()
            return
        self._report(State.STOPPING)
        await process.stop(self.plan.drain_timeout_s)

    async def _unless_stopped(self, awaitable: Awaitable[_T]) -> _T | None:
        """The awaitable's result, or None, with it cancelled, when a stop comes first."""
        task = asyncio.ensure_future(awaitable)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            await _cancel(task, stop)

    def _report(self, state: State, detail: str = "", progress: float | None = None) -> None:
        self._around.on_event(Event(self.plan.name, state, detail, progress))


async def _within(awaitable: Awaitable[_T], timeout_s: float) -> _T | None:
    """The result, or None after `timeout_s`."""
    try:
        return await asyncio.wait_for(awaitable, timeout_s)
    except TimeoutError:
        return None


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
