"""The engine's loop: schedule, run, update, emit."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from shoal.model_worker.failure import RequestRefused
from shoal.model_worker.kv_cache import KVCacheManager, KvEvent
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.messages import Add, Cancel, Command, StepFrame, Stop
from shoal.model_worker.scheduler import Scheduler, SchedulerStats, StepOutput
from shoal.model_worker.step import PendingStep, Runner, StepPlan


class Inbox(Protocol):
    """Where commands come from."""

    def receive(self, *, wait: bool) -> Iterable[Command]:
        """The commands at hand; with `wait`, blocks until there is one."""

    def wait(self, timeout_s: float) -> None:
        """Returns when there may be one, something else needs a turn, or the time is over."""


class Offload(Protocol):
    """Keeps blocks elsewhere as well; see `kv_offload`."""

    def report(self) -> KvStoreStats | None:
        """The counters, if they changed since the last report."""

    def rest(self) -> None:
        """Nothing is computed until the next request is asked for."""

    def stepped(self, events: Sequence[KvEvent], num_tokens: int, step_s: float) -> None:
        """A step has ended, its tokens are on their way, and these are the cache's events since the last one."""


class Engine:
    """Ties scheduler, cache and runner together. Single-threaded: nothing happens between steps but what is here.

    Where the runner takes more steps than one, step N + 1 is planned and submitted while the device computes step N,
    and the frame of step N is sent while it computes N + 1.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cache: KVCacheManager,
        runner: Runner,
        inbox: Inbox,
        emit: Callable[[StepFrame], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        offload: Offload | None = None,
    ) -> None:
        """offload: keeps the cache's blocks elsewhere as well."""
        self._offload = offload
        self._scheduler = scheduler
        self._cache = cache
        self._runner = runner
        self._inbox = inbox
        self._emit = emit
        self._clock = clock
        self._pending: deque[tuple[StepPlan, PendingStep, float]] = deque()
        """With the time when it was planned, since submitting a large step may itself wait for the device."""
        self._last_end_s = 0.0

    def run(self) -> None:
        """Serves until told to stop. Whatever the runner or the inbox raises ends the engine."""
        while True:
            # Idle, this blocks on the inbox; busy, it takes what came during the last step.
            changed, idle = False, not self._scheduler.has_work
            if idle and self._offload is not None:
                self._offload.rest()
                self._inbox.wait(math.inf)  # a store may have done something meanwhile
                changed = True
            for command in self._inbox.receive(wait=idle and not changed):
                if isinstance(command, Stop):
                    return
                self.handle(command)
                changed = True
            self.turn(changed=changed)

    def turn(self, *, changed: bool = False) -> None:
        """Submits a step, if there is anything to compute, and takes in the oldest where it is time to."""
        start_s = self._clock()
        scheduler, pending = self._scheduler, self._pending
        plan = scheduler.schedule()
        if plan is not None:
            pending.append((plan, self._runner.submit(plan), start_s))
            if len(pending) < self._runner.max_pending_steps and not _is_awaited(plan):
                return
        elif not pending:
            until_s = scheduler.waiting_until_s if scheduler.has_work else None
            if until_s is None and scheduler.has_work:
                raise RuntimeError("the scheduler has work but planned nothing; it would never end")
            self._say(0.0, 0, changed=changed)
            if until_s is not None:
                self._inbox.wait(until_s - self._clock())
            return
        self._finish_oldest()
        # Nothing may be planned after forks before they have their first tokens, or while it is open whether a step
        # counts. Without work, what was planned for those who have ended would wait for the next request.
        is_awaited = plan is not None and _is_awaited(plan)
        while pending and (is_awaited or not scheduler.has_work):
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        plan, step, start_s = self._pending.popleft()
        result = step.result()
        end_s = self._clock()
        self._scheduler.update(plan, result)
        if plan.feed is not None:  # it mostly waited for a load: that says nothing of how fast prompts are computed
            self._say(0.0, 0, changed=True)
            self._last_end_s = end_s
            return
        self._say(end_s - max(start_s, self._last_end_s), plan.total_tokens, changed=True)
        self._last_end_s = end_s

    def _say(self, step_s: float, num_tokens: int, *, changed: bool) -> None:
        """Sends a frame. step_s: time that the step added."""
        scheduler = self._scheduler
        output = scheduler.take_output()
        if output.empty and not changed:
            return
        events = self._cache.take_events()
        offload = self._offload
        store = None if offload is None else offload.report()
        self._emit(to_frame(output, events, scheduler.stats, step_s, num_tokens, store))
        if offload is not None:
            offload.stepped(events, num_tokens, step_s)

    def handle(self, command: Add | Cancel) -> None:
        """Takes in a command. `run` does."""
        if isinstance(command, Cancel):
            self._scheduler.cancel(command.stream_id)
            return
        try:
            self._scheduler.add(command.request)
        except RequestRefused as refusal:
            self._scheduler.refuse(command.request.stream_id, refusal.failure)


def _is_awaited(plan: StepPlan) -> bool:
    """Whether nothing may be planned before the result is in."""
    return bool(plan.forks) or plan.feed is not None


def to_frame(
    output: StepOutput,
    kv_events: list[KvEvent],
    stats: SchedulerStats,
    step_s: float,
    num_tokens: int,
    kv_store: KvStoreStats | None = None,
) -> StepFrame:
    """What the front is told of a step."""
    return StepFrame(
        output.stream_ids.tobytes(),
        output.token_ids.tobytes(),
        output.started,
        output.finished,
        output.failed,
        output.logprobs,
        output.prompt_logprobs,
        kv_events,
        stats,
        step_s,
        num_tokens,
        kv_store,
    )
