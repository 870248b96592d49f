"""Workers for `gateway.leg`, without gRPC: each delivers what is due, until the fault that a test gave it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import KeyChain
from shoal.gateway.attempt import Attempt, StallWatch
from shoal.gateway.dispatch import Errand
from shoal.gateway.journal import Journal
from shoal.gateway.routing.load import Load, LoadTracker
from shoal.gateway.routing.policy import Candidate, Ranking
from shoal.gateway.routing.router import Pick
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import Cancelled, ShoalError

MODEL = ServedModel("fake", "d1" * 32, "fake-v1", 4, 1024, 10_000, 0)
PROMPT = (1, 2, 3)
CACHED = 2


@dataclass(frozen=True)
class Fault:
    """How an attempt ends before its time."""

    after: int = 0
    """Messages that are delivered first."""
    error: ShoalError | None = None
    """None: the call ends as if all were well."""
    hangs: bool = False
    """It does not end at all, until it is cancelled."""
    dies: bool = False
    """The worker is gone with it: its epoch changes."""


@dataclass(frozen=True)
class Asked:
    """What a worker was asked for."""

    worker: str
    choices: tuple[int, ...]
    resumed: tuple[int, ...]


def tokens_of(choice: int, length: int) -> list[int]:
    """The completion that every worker agrees on."""
    return [1000 * choice + position for position in range(length)]


def make_errand(lengths: Sequence[int], deadline_s: float = float("inf")) -> Errand:
    """A request for as many completions as there are lengths."""
    params = generation_pb2.SamplingParams(seed=1, n=len(lengths))
    return Errand(worker_pb2.GenerateRequest(token_ids=PROMPT, sampling=params), "r", MODEL, deadline_s)


@dataclass
class FakeWorkers:
    """Implements `stream.Workers`. Faults are used up one an attempt; after them nothing fails any more."""

    lengths: Sequence[int]
    faults: deque[Fault] = field(default_factory=deque)
    tokens_per_message: int = 1
    epochs: dict[str, int] = field(default_factory=lambda: {"a": 1, "b": 1, "c": 1})
    """0: not reachable."""
    watch: StallWatch = field(default_factory=lambda: StallWatch(stall_timeout_s=0, first_token_timeout_s=0))
    loads: LoadTracker = field(default_factory=LoadTracker)
    asked: list[Asked] = field(default_factory=list)
    calls: list[FakeCall] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def candidates(self, errand: Errand, avoided: Mapping[str, int]) -> list[str]:
        return [w for w, epoch in self.epochs.items() if epoch and avoided.get(w) != epoch]

    def epoch_of(self, address: str) -> int:
        return self.epochs[address]

    def set_epoch(self, address: str, epoch: int) -> None:
        self.epochs[address] = epoch
        self.changed.set()

    async def wait_changed(self) -> None:
        self.changed.clear()
        await self.changed.wait()

    def first(self, errand: Errand) -> Attempt:
        return self._attempt("a", range(len(self.lengths)), ())

    def rank(
        self, errand: Errand, journal: Journal, choices: Sequence[int], endpoints: list[str], chain: KeyChain | None
    ) -> Ranking:
        return Ranking(tuple(Candidate(endpoint, 0, Load()) for endpoint in endpoints), "load")

    def resume(self, errand: Errand, journal: Journal, choices: Sequence[int], endpoints: list[str]) -> Attempt:
        resumed = tuple(journal.completions[choices[0]].token_ids) if journal.begun else ()
        assert not journal.begun or len(choices) == 1
        return self._attempt(endpoints[0], choices, resumed)

    def _attempt(self, worker: str, choices: Sequence[int], resumed: tuple[int, ...]) -> Attempt:
        self.asked.append(Asked(worker, tuple(choices), resumed))
        fault = self.faults.popleft() if self.faults else None
        call = FakeCall(self, worker, self._messages(choices, len(resumed)), fault)
        self.calls.append(call)
        pick = Pick(endpoints=(worker,))
        return Attempt(call, self.loads.admit(worker, len(PROMPT)), pick, self.epochs[worker], self.watch)

    def _messages(self, choices: Sequence[int], num_resumed: int) -> deque[worker_pb2.GenerateResponse]:
        messages: deque[worker_pb2.GenerateResponse] = deque()
        step = self.tokens_per_message
        longest = max(self.lengths[c] for c in choices)
        for start in range(num_resumed, max(longest, num_resumed + 1), step):
            for choice in choices:
                ids, length = tokens_of(choice, self.lengths[choice]), self.lengths[choice]
                if start and start >= length and start > num_resumed:
                    continue
                part = ids[start : start + step]
                message = worker_pb2.GenerateResponse(choice=choice, first_token_index=start, token_ids=part)
                if start + step >= length:
                    message.finish_reason = generation_pb2.FINISH_REASON_LENGTH
                messages.append(message)
        usage = generation_pb2.Usage(prompt_tokens=len(PROMPT), cached_tokens=CACHED + len(self.asked) - 1)
        usage.completion_tokens = num_resumed + len(messages[0].token_ids)
        messages[0].usage.CopyFrom(usage)
        usage.completion_tokens = sum(self.lengths[c] for c in choices)
        messages[-1].usage.CopyFrom(usage)
        return messages


@dataclass
class FakeCall:
    """Implements `attempt.Call`."""

    workers: FakeWorkers
    worker: str
    messages: deque[worker_pb2.GenerateResponse]
    fault: Fault | None
    num_sent: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reading: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> bytes | None:
        await asyncio.sleep(0)
        if self.ended.is_set():
            raise Cancelled("the request was cancelled")
        fault = self.fault
        if fault is not None and self.num_sent >= fault.after:
            if fault.dies:
                self.workers.set_epoch(self.worker, self.workers.epochs[self.worker] + 1)
            if fault.hangs:
                self.reading.set()
                await self.ended.wait()
                raise Cancelled("the request was cancelled")
            if fault.error is not None:
                raise fault.error
            return None
        self.num_sent += 1
        return self.messages.popleft().SerializeToString() if self.messages else None

    async def served_by(self) -> str:
        return self.worker

    def failed_at(self) -> str:
        return self.worker

    def cancel(self) -> None:
        self.ended.set()
