"""Drives a scheduler step by step and keeps what it puts out."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from shoal.model_worker.block_source import BlockSource
from shoal.model_worker.failure import Failure
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.request import FinishReason, Request
from shoal.model_worker.scheduler import FcfsPolicy, Finished, Policy, Scheduler, SchedulerConfig
from shoal.model_worker.step import StepPlan, StepResult
from support.history_runner import HistoryRunner, expected_output

VOCAB = 50
EOS = frozenset({7})


@dataclass
class SchedulerHarness:
    """A scheduler over a HistoryRunner, with a clock that the test moves, and everything that it put out by stream id.

    Checks on the way that no step is larger than allowed and that nothing follows the end of a stream.
    """

    num_blocks: int = 64
    block_size: int = 4
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 16
    max_model_len: int = 64
    max_queued_requests: int = 1000
    max_queued_tokens: int = 100_000
    policy: Policy = field(default_factory=FcfsPolicy)
    now_s: float = 0.0
    steps_ahead: int = 0
    """Steps that are planned and run before the result of one is taken in."""

    def __post_init__(self) -> None:
        self.cache = KVCacheManager(self.num_blocks, self.block_size)
        config = SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            max_queued_requests=self.max_queued_requests,
            max_queued_tokens=self.max_queued_tokens,
        )
        self.config = config
        self.use(None)
        self.runner = HistoryRunner(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            vocab_size=VOCAB,
        )
        self.pending: deque[tuple[StepPlan, StepResult]] = deque()
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.finished: dict[int, Finished] = {}
        self.failed: dict[int, Failure] = {}
        self.started: dict[int, int] = {}
        self.logprobs: dict[int, list[int]] = defaultdict(list)
        self.prompt_logprobs: dict[int, list[int]] = {}

    def use(self, source: BlockSource | None) -> None:
        """Makes the scheduler anew, with blocks from elsewhere."""
        self.scheduler = Scheduler(
            self.config, self.cache, self.policy, eos_token_ids=EOS, clock=lambda: self.now_s, block_source=source
        )

    def step(self) -> StepPlan | None:
        """One step; None when there is nothing to compute."""
        plan = self.scheduler.schedule()
        if plan is not None:
            assert plan.total_tokens <= self.max_num_batched_tokens
            self.pending.append((plan, self.runner.execute(plan)))
        if plan is None or plan.forks or plan.feed is not None:
            self._update(len(self.pending))
        else:
            self._update(len(self.pending) - self.steps_ahead)
        return plan

    def _update(self, count: int) -> None:
        for _ in range(count):
            self.scheduler.update(*self.pending.popleft())
            self._take_output()
        self._take_output()

    def _take_output(self) -> None:
        output = self.scheduler.take_output()
        for stream_id, token_id in zip(output.stream_ids.tolist(), output.token_ids.tolist(), strict=True):
            assert stream_id not in self.finished
            self.tokens[stream_id].append(token_id)
        self.finished |= {finished.stream_id: finished for finished in output.finished}
        self.failed |= dict(output.failed)
        for stream_id, num_cached in output.started:
            assert stream_id not in self.started
            self.started[stream_id] = num_cached
        for stream_id, entry in output.logprobs:
            self.logprobs[stream_id].append(entry.token_id)
        for stream_id, entries in output.prompt_logprobs:
            assert stream_id not in self.prompt_logprobs
            self.prompt_logprobs[stream_id] = [entry.token_id for entry in entries]

    def finish_all(self, max_steps: int = 5000) -> int:
        """Steps until no work is left and returns how many; fails when somebody starves or a block stays taken.

        Whoever waits for blocks from elsewhere waits in vain: the clock moves on.
        """
        steps = 0
        while self.scheduler.has_work:
            if self.step() is None:
                until_s = self.scheduler.waiting_until_s
                assert until_s is not None or self.steps_ahead, "there is work, but nothing to compute"
                self.now_s = max(self.now_s, until_s or 0.0)
            steps += 1
            assert steps < max_steps, "somebody starves"
        self._update(len(self.pending))  # what was planned for those who turned out to have ended
        assert self.cache.num_free_blocks == self.cache.num_blocks
        assert self.scheduler.stats.num_running == self.scheduler.stats.num_waiting == 0
        return steps

    def check_outputs(self, request: Request) -> None:
        """Every choice of the request has the output and the end that it would have had alone."""
        for choice in range(request.sampling.n):
            expected = expected_output(request, choice, VOCAB, EOS)
            stream_id = request.stream_id + choice
            assert [*request.resume_token_ids, *self.tokens[stream_id]] == expected
            reason = self.finished[stream_id].reason
            assert reason == request.finish_reason(len(expected), expected[-1], EOS)
            assert self.finished[stream_id].stop_token_id == (expected[-1] if reason == FinishReason.STOP else None)
