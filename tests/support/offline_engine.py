"""Runs scheduler, cache and CPU runner in this process, to the end, for tests that compare whole outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_setup import EngineParts, set_up
from shoal.model_worker.failure import Failure
from shoal.model_worker.request import Request
from shoal.model_worker.scheduler import SchedulerStats
from shoal.model_worker.step import TokenLogprobs


@dataclass(slots=True)
class Outputs:
    """What came out, by stream id (a request's stream id plus the choice)."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    failed: dict[int, Failure] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)


class OfflineEngine:
    """One loaded model; `generate` may be called again and again and keeps the prefix cache between calls."""

    def __init__(self, config: WorkerConfig) -> None:
        self.parts: EngineParts = set_up(config, lambda stage, fraction: None)

    @property
    def stats(self) -> SchedulerStats:
        """The scheduler's counters."""
        return self.parts.scheduler.stats

    def generate(self, requests: Iterable[Request], max_steps: int = 20_000) -> Outputs:
        """Runs the requests together until all are done. AssertionError when that takes more than `max_steps`."""
        scheduler, outputs = self.parts.scheduler, Outputs()
        for request in requests:
            scheduler.add(request)
        for _ in range(max_steps):
            plan = scheduler.schedule()
            if plan is None:
                assert not scheduler.has_work
                return outputs
            scheduler.update(plan, self.parts.runner.submit(plan).result())
            output = scheduler.take_output()
            for stream_id, token_id in zip(output.stream_ids.tolist(), output.token_ids.tolist(), strict=True):
                outputs.tokens.setdefault(stream_id, []).append(token_id)
            outputs.cached.update(output.started)
            outputs.failed.update(output.failed)
            outputs.prompt_logprobs.update(output.prompt_logprobs)
            for stream_id, logprobs in output.logprobs:
                outputs.logprobs.setdefault(stream_id, []).append(logprobs)
        raise AssertionError(f"not done after {max_steps} steps")
