"""Events in order of time: requests arrive, steps end, the router's index hears of it."""

from __future__ import annotations

import heapq
import itertools
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.blocks import iter_word_keys, namespace_key
from shoal.gateway.routing.load import Ticket
from shoal.gateway.routing.policy import Policy
from shoal.gateway.routing.router import PickRequest
from shoal.model_worker.failure import RequestRefused
from shoal.model_worker.kv_cache import Cleared, KvEvent, Removed, Stored
from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import StepOutput
from shoal.model_worker.simulated_timing import LLAMA_8B_H100, SimulatedGpu
from shoal.simulator.envoy import RingHash, WeightedRoundRobin
from shoal.simulator.gateways import VirtualGateways
from shoal.simulator.trace import TraceRequest, arrivals_s
from shoal.simulator.worker import VirtualWorker

MAX_WORKERS = 1024
OnProgress = Callable[[int], None]
"""Called with the number of requests that ended so far, from time to time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """What is simulated. Two runs with equal settings, trace and policy are equal in every number."""

    num_workers: int = 8
    gpu: SimulatedGpu = LLAMA_8B_H100
    speedup: float = 1.0
    """How much faster requests arrive than in the trace; infinite: all at once."""
    kv_event_delay_s: float = 0.005
    """From the end of a step to the router's index."""
    num_gateways: int = 1
    """Each with an index of its own, as each follows the events itself; requests go to them in turn."""
    peer_delay_s: float | None = 0.001
    """From a gateway's message about its loads to its arrival at the others; None: they tell each other nothing."""
    max_index_keys: int = 1 << 20
    vocab_size: int = 32000
    seed: int = 0
    """Of the tokens that are generated."""


@dataclass(slots=True)
class RequestRecord:
    """One request; times are seconds of virtual time."""

    arrival_s: float
    num_prompt_tokens: int
    worker: int = -1
    num_predicted_hit_tokens: int = 0
    """What the router expected of the worker."""
    num_hit_tokens: int = 0
    num_output_tokens: int = 0
    first_token_s: float = 0.0
    end_s: float = 0.0
    error: str | None = None
    """Why it failed: a row of the table in `shoal.rpc.errors`."""
    token_ids: list[int] = field(default_factory=list)
    """Left empty unless asked for."""


@dataclass(frozen=True, slots=True)
class MeshRun:
    """What happened."""

    records: list[RequestRecord]
    """In the trace's order."""
    busy: float
    """Part of the time until the last arrival that workers computed anything, on average."""
    num_steps: int
    num_preemptions: int
    picks: dict[str, int]
    """By the policy's reason."""


class VirtualMesh:
    """A gateway, its workers, and a clock. Used once."""

    def __init__(
        self, trace: Sequence[TraceRequest], policy: Policy, settings: MeshSettings, *, keep_tokens: bool = False
    ) -> None:
        """`trace` is in order of time; see `trace.read_trace`."""
        self._trace = trace
        self._settings = settings
        self._keep_tokens = keep_tokens
        self._now_s = 0.0
        self._gateways = VirtualGateways(
            settings.num_gateways,
            policy,
            settings.max_index_keys,
            lambda: self._now_s,
            self._at,
            peer_delay_s=settings.peer_delay_s if settings.num_gateways > 1 else None,
        )
        self._names = [f"worker-{i}" for i in range(settings.num_workers)]
        self._number = {name: i for i, name in enumerate(self._names)}
        self._kv_tokens = dict.fromkeys(self._names, settings.gpu.num_blocks * settings.gpu.block_size)
        max_model_len = max(request.input_length + request.output_length for request in trace)
        self._workers = [
            VirtualWorker(
                settings.gpu, vocab_size=settings.vocab_size, max_model_len=max_model_len, clock=lambda: self._now_s
            )
            for _ in self._names
        ]
        self._ring = RingHash(settings.num_workers)
        self._weights = WeightedRoundRobin(self._workers)
        for index, name in itertools.product(self._gateways.indexes, self._names):
            index.store(name, [])  # the first snapshot: known, and empty
        self._namespace_key = namespace_key(f"simulated-{settings.vocab_size}", "simulated-v1")
        self._tickets: dict[int, Ticket] = {}
        self._awaiting: list[set[int]] = [set() for _ in self._names]
        """Requests without a first token, by worker."""
        self._records: list[RequestRecord] = []
        self._picks: dict[str, int] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0

    def run(self, on_progress: OnProgress = lambda num_done: None) -> MeshRun:
        """Until every request has ended."""
        arrivals = arrivals_s(self._trace, self._settings.speedup)
        for i, (arrival_s, request) in enumerate(zip(arrivals, self._trace, strict=True)):
            self._run_until(arrival_s)
            self._arrive(i, arrival_s, request)
            if i % 100 == 0:
                on_progress(i - len(self._tickets))
        busy_s = [worker.busy_s for worker in self._workers]
        self._run_until(math.inf)
        assert not self._tickets, "a request neither ended nor failed"
        window_s = len(busy_s) * arrivals[-1]
        return MeshRun(
            self._records,
            min(1.0, sum(busy_s) / window_s) if window_s else 0.0,
            sum(worker.num_steps for worker in self._workers),
            sum(worker.num_preemptions for worker in self._workers),
            self._picks,
        )

    def _run_until(self, time_s: float) -> None:
        events = self._events
        while events and events[0][0] <= time_s:
            self._now_s, _, happen = heapq.heappop(events)
            happen()
        if time_s != math.inf:
            self._now_s = time_s

    def _at(self, time_s: float, happen: Callable[[], None]) -> None:
        self._num_events += 1  # equal times in the order in which they were planned
        heapq.heappush(self._events, (time_s, self._num_events, happen))

    def _arrive(self, i: int, arrival_s: float, traced: TraceRequest) -> None:
        settings = self._settings
        token_ids = traced.token_ids(settings.vocab_size)
        block_size = settings.gpu.block_size
        words = token_ids.astype("<i4", copy=False).tobytes()
        pick, ticket = self._gateways.pick(
            i,
            PickRequest(
                endpoints=self._names,
                block_keys=iter_word_keys(self._namespace_key, words, block_size),
                block_size=block_size,
                prompt_tokens=len(token_ids),
                kv_tokens=self._kv_tokens,
            ),
        )
        number = self._number[pick.endpoints[0]] if pick.endpoints else self._envoy_choice(pick.prefix_hash)
        record = RequestRecord(arrival_s, len(token_ids), number, pick.predicted_cached_tokens)
        self._records.append(record)
        self._picks[pick.reason] = self._picks.get(pick.reason, 0) + 1
        request = Request(
            stream_id=i,
            request_id=str(i),
            prompt_token_ids=tuple(array("i", words)),
            sampling=SamplingParams(max_tokens=traced.output_length, ignore_eos=True),
            seed=settings.seed + i,
            namespace_key=self._namespace_key,
            arrival_s=arrival_s,
        )
        try:
            end_s = self._workers[number].offer(request)
        except RequestRefused as refusal:
            record.error, record.end_s = refusal.failure.reason, self._now_s
            ticket.close()
            return
        self._tickets[i] = ticket
        self._gateways.tell()
        self._awaiting[number].add(i)
        if end_s is not None:
            self._at(end_s, lambda: self._end_step(number))

    def _envoy_choice(self, prefix_hash: str) -> int:
        return self._ring.choose(prefix_hash) if prefix_hash else self._weights.choose(self._now_s)

    def _end_step(self, number: int) -> None:
        output, kv_events, next_end_s = self._workers[number].end_step()
        if next_end_s is not None:
            self._at(next_end_s, lambda: self._end_step(number))
        if kv_events:
            name = self._names[number]
            self._at(self._now_s + self._settings.kv_event_delay_s, lambda: self._index_events(name, kv_events))
        self._note(number, output)

    def _note(self, number: int, output: StepOutput) -> None:
        records, awaiting = self._records, self._awaiting[number]
        for stream_id, num_hit_tokens in output.started:
            records[stream_id].num_hit_tokens = num_hit_tokens
        if awaiting:
            for stream_id in awaiting.intersection(output.stream_ids.tolist()):
                awaiting.remove(stream_id)
                records[stream_id].first_token_s = self._now_s
                self._tickets[stream_id].answered(self._names[number])
        if self._keep_tokens:
            for stream_id, token_id in zip(output.stream_ids.tolist(), output.token_ids.tolist(), strict=True):
                records[stream_id].token_ids.append(token_id)
        for finished in output.finished:
            record = records[finished.stream_id]
            record.end_s = self._now_s
            record.num_output_tokens = self._trace[finished.stream_id].output_length
            self._tickets.pop(finished.stream_id).close(record.num_output_tokens)
        for stream_id, failure in output.failed:
            records[stream_id].error, records[stream_id].end_s = failure.reason, self._now_s
            awaiting.discard(stream_id)
            self._tickets.pop(stream_id).close()
        self._gateways.tell()

    def _index_events(self, name: str, events: list[KvEvent]) -> None:
        for index, event in itertools.product(self._gateways.indexes, events):
            match event:
                case Stored():
                    index.store(name, event.keys)
                case Removed():
                    index.remove(name, event.keys)
                case Cleared():
                    index.clear(name)
