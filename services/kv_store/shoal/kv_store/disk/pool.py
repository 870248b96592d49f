"""Threads that do I/O, and a deadline for each.

A system call that does not return cannot be cancelled. When a deadline passes, the request fails, the thread that is
inside the call is written off and another takes its place, up to a limit; a thread that comes back after all ends.
What a late call still writes to is memory of the lost thread alone, because every I/O goes through a buffer of its
thread; before a thread touches anything else, it claims its request, and a request that was given up is not to be had.
"""

from __future__ import annotations

import collections
import ctypes
import logging
import mmap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, TypeVar

from shoal.kv_store.disk.errors import Expired, NotAdmitted, OutOfService, Stalled

Lane = Literal["read", "write"]
_T = TypeVar("_T")
_BUFFER_STEP_BYTES: Final = 1 << 20
_logger: Final = logging.getLogger(__name__)


class WrittenOff(Exception):
    """The request was given up while the thread was in a system call."""


class Buffer:
    """Page-aligned memory of one thread."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = mmap.mmap(-1, num_bytes)
        self.view = memoryview(self._memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))


class IoContext:
    """What a request may use while it runs."""

    def __init__(self, pool: IoPool) -> None:
        self._pool = pool
        self._buffer = Buffer(_BUFFER_STEP_BYTES)
        self.task: _Task | None = None

    def buffer(self, num_bytes: int) -> Buffer:
        """At least `num_bytes` that nobody else uses until the request is over."""
        if len(self._buffer.view) < num_bytes:
            self._buffer = Buffer(-(-num_bytes // _BUFFER_STEP_BYTES) * _BUFFER_STEP_BYTES)
        return self._buffer

    def claim(self) -> None:
        """From here on the deadline no longer applies: what follows must be short and make no system call.

        Raises WrittenOff if it has passed.
        """
        self._pool.claim(self)

    @property
    def is_abandoned(self) -> bool:
        """Whether the deadline has passed: what this thread still does is for nobody."""
        task = self.task
        return task is not None and task.state is _State.OVER

    @property
    def spare_s(self) -> float:
        """Time that may be waited for something else, with a quarter of the timeout left for the I/O."""
        assert self.task is not None
        return self.task.deadline_s - self.task.timeout_s / 4 - time.monotonic()


class _State(Enum):
    QUEUED = 1
    RUNNING = 2
    CLAIMED = 3
    OVER = 4


@dataclass(slots=True, eq=False)
class _Task:
    work: Callable[[IoContext], Any]
    lane: Lane
    timeout_s: float
    deadline_s: float
    on_stall: Callable[[], None] | None
    future: Future[Any] = field(default_factory=Future)
    state: _State = _State.QUEUED


class IoPool:
    """Threads for two lanes: reads go first, and writes never take the last thread."""

    def __init__(
        self,
        num_threads: int,
        max_lost_threads: int,
        max_queued: int,
        timeout_s: float,
        on_stall: Callable[[Lane], None],
    ) -> None:
        """`on_stall` is called, by a thread of the pool, for each request that ran into its deadline."""
        self.timeout_s = timeout_s
        self.max_queued = max_queued
        self.num_lost = 0
        self._num_threads = num_threads
        self._max_lost_threads = max_lost_threads
        self._on_stall = on_stall
        self._lock = threading.Lock()
        self._work_ready = threading.Condition(self._lock)
        self._watch = threading.Condition(self._lock)
        self._wakes_at_s = float("inf")
        self._queues: dict[Lane, collections.deque[_Task]] = {"read": collections.deque(), "write": collections.deque()}
        self._running: set[_Task] = set()
        self._num_alive = 0
        self._closed = False
        self._when_quiet: Callable[[], None] | None = None
        self._watchdog = threading.Thread(target=self._watch_deadlines, name="kv-disk-watchdog", daemon=True)
        self._watchdog.start()
        with self._lock:
            for _ in range(num_threads):
                self._start_thread()

    @property
    def exhausted(self) -> bool:
        """Whether no more threads may be lost: nothing is taken until one comes back."""
        return self.num_lost >= self._max_lost_threads

    def num_queued(self, lane: Lane) -> int:
        """Requests that wait for a thread."""
        return len(self._queues[lane])

    def submit(
        self,
        work: Callable[[IoContext], _T],
        lane: Lane,
        timeout_s: float | None = None,
        on_stall: Callable[[], None] | None = None,
    ) -> Future[_T]:
        """The future ends within twice the timeout: once for waiting, once for running.

        It never raises: NotAdmitted when the lane's queue is full, Expired, Stalled, OutOfService and whatever
        `work` raises come through the future. `on_stall` is called before the future ends with Stalled.
        """
        timeout_s = self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s)
        task = _Task(work, lane, timeout_s, time.monotonic() + timeout_s, on_stall)
        with self._lock:
            refusal = self._refusal(lane)
            if refusal is None:
                self._queues[lane].append(task)
                self._work_ready.notify()
                if task.deadline_s < self._wakes_at_s:
                    self._watch.notify()
        if refusal is not None:
            task.future.set_exception(refusal)
        return task.future

    def claim(self, context: IoContext) -> None:
        """See `IoContext.claim`."""
        with self._lock:
            task = context.task
            if task is None or task.state is not _State.RUNNING:
                raise WrittenOff
            task.state = _State.CLAIMED

    def close(self, when_quiet: Callable[[], None]) -> None:
        """Fails what waits, and returns when what runs is over or written off.

        `when_quiet` is called when no thread is in a system call any more: before this returns, or by the last lost
        thread that comes back.
        """
        with self._lock:
            self._closed = True
            waiting = [task for queue in self._queues.values() for task in queue]
            for queue in self._queues.values():
                queue.clear()
            self._work_ready.notify_all()
            self._watch.notify()
        for task in waiting:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(OutOfService("the disk tier is closed"))
        self._watchdog.join()
        with self._lock:
            self._when_quiet = when_quiet if self.num_lost else None
        if self._when_quiet is None:
            when_quiet()

    def _refusal(self, lane: Lane) -> Exception | None:
        if self._closed:
            return OutOfService("the disk tier is closed")
        if self.exhausted:
            return OutOfService(f"{self.num_lost} threads wait in system calls that do not return")
        if len(self._queues[lane]) >= self.max_queued:
            return NotAdmitted("queue_full", f"{self.max_queued} {lane} requests wait already")
        return None

    def _start_thread(self) -> None:
        self._num_alive += 1
        threading.Thread(target=self._run, name="kv-disk-io", daemon=True).start()

    def _run(self) -> None:
        context = IoContext(self)
        while (task := self._take(context)) is not None:
            result: Any = None
            failure: BaseException | None = None
            try:
                result = task.work(context)
            except BaseException as error:  # it belongs to whoever waits for the future
                failure = error
            with self._lock:
                context.task = None
                self._running.discard(task)
                if task.state is _State.OVER:  # written off meanwhile
                    self._come_back()
                    if self._num_alive >= self._num_threads:
                        return
                    self._num_alive += 1
                    continue
                task.state = _State.OVER
                if self._closed:
                    self._watch.notify()
            if failure is None:
                task.future.set_result(result)
            else:
                task.future.set_exception(failure)
            del task, result, failure

    def _come_back(self) -> None:
        self.num_lost -= 1
        if self._when_quiet is not None and not self.num_lost:
            self._when_quiet()

    def _take(self, context: IoContext) -> _Task | None:
        with self._lock:
            while True:
                if self._closed:
                    self._num_alive -= 1
                    return None
                task = self._next()
                if task is None:
                    self._work_ready.wait()
                elif task.future.set_running_or_notify_cancel():
                    break
            task.state = _State.RUNNING
            task.deadline_s = time.monotonic() + task.timeout_s
            context.task = task
            self._running.add(task)
            if task.deadline_s < self._wakes_at_s:
                self._watch.notify()
            return task

    def _next(self) -> _Task | None:
        if self._queues["read"]:
            return self._queues["read"].popleft()
        num_writes = sum(task.lane == "write" for task in self._running)
        if self._queues["write"] and num_writes < max(1, self._num_threads - 1):
            return self._queues["write"].popleft()
        return None

    def _watch_deadlines(self) -> None:
        while True:
            try:
                self._enforce_deadlines()
                return
            except Exception:  # without this thread nothing that hangs would ever end
                _logger.exception("the watch over deadlines failed; it goes on")

    def _enforce_deadlines(self) -> None:
        while True:
            with self._lock:
                if self._closed and not self._running:
                    return
                now_s = time.monotonic()
                late = self._collect_late(now_s)
                if not late:
                    pending = [task for queue in self._queues.values() for task in queue]
                    pending += [task for task in self._running if task.state is _State.RUNNING]
                    self._wakes_at_s = min((task.deadline_s for task in pending), default=float("inf"))
                    self._watch.wait(min(self._wakes_at_s - now_s, threading.TIMEOUT_MAX))
                    self._wakes_at_s = 0.0  # awake: it looks again by itself
                    continue
            for task, was_running in late:
                self._give_up(task, was_running)

    def _collect_late(self, now_s: float) -> list[tuple[_Task, bool]]:
        late = []
        for task in [task for task in self._running if task.deadline_s <= now_s and task.state is _State.RUNNING]:
            task.state = _State.OVER
            self._running.discard(task)
            self.num_lost += 1
            self._num_alive -= 1
            if not self.exhausted and not self._closed:
                try:
                    self._start_thread()
                except RuntimeError:  # the system has none: there is one fewer until this one comes back
                    self._num_alive -= 1
            late.append((task, True))
        for queue in self._queues.values():
            for task in [task for task in queue if task.deadline_s <= now_s]:
                task.state = _State.OVER
                queue.remove(task)
                late.append((task, False))
        return late

    def _give_up(self, task: _Task, was_running: bool) -> None:
        if not was_running:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(Expired(f"the request waited {task.timeout_s:g} s for a thread"))
            return
        self._on_stall(task.lane)
        if task.on_stall is not None:
            task.on_stall()
        task.future.set_exception(Stalled(f"the I/O did not return within {task.timeout_s:g} s"))
