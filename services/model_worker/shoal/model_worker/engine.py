"""The engine's loop: schedule, run, update, emit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from shoal.model_worker.failure import RequestRefused
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.messages import Add, Cancel, Command, StepFrame, Stop
from shoal.model_worker.scheduler import Scheduler
from shoal.model_worker.step import Runner


class Inbox(Protocol):
    """Where commands come from."""

    def receive(self, *, wait: bool) -> Iterable[Command]:
        """The commands at hand; with `wait`, blocks until there is one."""


class Engine:
    """Ties scheduler, cache and runner together. Single-threaded: nothing happens between steps but what is here."""

    def __init__(
        self,
        scheduler: Scheduler,
        cache: KVCacheManager,
        runner: Runner,
        inbox: Inbox,
        emit: Callable[[StepFrame], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._runner = runner
        self._inbox = inbox
        self._emit = emit
        self._clock = clock

    def run(self) -> None:
        """Serves until told to stop. Whatever the runner or the inbox raises ends the engine."""
        while True:
            # Idle, this blocks on the inbox; busy, it takes what came during the last step.
            changed = False
            for command in self._inbox.receive(wait=not self._scheduler.has_work):
                if isinstance(command, Stop):
                    return
                self._handle(command)
                changed = True
            self.turn(changed=changed)

    def turn(self, *, changed: bool = False) -> None:
        """One step, if there is anything to compute, and one frame, if there is anything to say."""
        scheduler = self._scheduler
        plan = scheduler.schedule()
        step_s, num_tokens = 0.0, 0
        if plan is not None:
            start_s = self._clock()
            result = self._runner.execute(plan)
            step_s, num_tokens = self._clock() - start_s, plan.total_tokens
            scheduler.update(plan, result)
        elif scheduler.has_work:
            raise RuntimeError("the scheduler has work but planned nothing; it would never end")
        output = scheduler.take_output()
        if plan is None and output.empty and not changed:
            return
        self._emit(
            StepFrame(
                output.stream_ids.tobytes(),
                output.token_ids.tobytes(),
                output.started,
                output.finished,
                output.failed,
                output.logprobs,
                output.prompt_logprobs,
                self._cache.take_events(),
                scheduler.stats,
                step_s,
                num_tokens,
            )
        )

    def _handle(self, command: Add | Cancel) -> None:
        if isinstance(command, Cancel):
            self._scheduler.cancel(command.stream_id)
            return
        try:
            self._scheduler.add(command.request)
        except RequestRefused as refusal:
            self._scheduler.refuse(command.request.stream_id, refusal.failure)
