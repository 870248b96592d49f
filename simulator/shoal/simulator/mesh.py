"""Events in order of time: requests arrive, steps end, the router's index hears of it."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from shoal.blocks import iter_word_keys, namespace_key
from shoal.gateway.routing.policy import Policy, Ranking
from shoal.gateway.routing.router import PickRequest
from shoal.model_worker.failure import RequestRefused
from shoal.model_worker.kv_cache import Cleared, KvEvent, Removed, Stored
from shoal.model_worker.scheduler import StepOutput
from shoal.model_worker.simulated_timing import LLAMA_8B_H100, SimulatedGpu
from shoal.simulator.envoy import RingHash, WeightedRoundRobin
from shoal.simulator.gateways import VirtualGateway, VirtualGateways
from shoal.simulator.moving import OpenRequest, Slowdown
from shoal.simulator.trace import TraceRequest, arrivals_s
from shoal.simulator.worker import VirtualWorker

MAX_WORKERS = 1024
MOVES_AT_ONCE = 5
"""Half of the streams that a gateway has on their way at once at least."""
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
    rebalance: bool = False
    """Whether gateways move requests by choice, as they do with policies that price workers unless told otherwise."""
    slowdowns: tuple[Slowdown, ...] = ()
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
    num_moves: int
    """By choice."""


class VirtualMesh:
    """A gateway, its workers, and a clock. Used once."""

    def __init__(
        self, trace: Sequence[TraceRequest], policy: Policy, settings: MeshSettings, *, keep_tokens: bool = False
    ) -> None:
        """`trace` is in order of time; see `trace.read_trace`."""
        self._trace = trace
        self._settings = settings
        self._keep_tokens = keep_tokens
        self._moves_by_choice = settings.rebalance and policy.needs_outlook
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
        self._open: dict[int, OpenRequest] = {}
        self._awaiting: list[set[int]] = [set() for _ in self._names]
        """Requests without a first token, by worker."""
        self._records: list[RequestRecord] = []
        self._picks: dict[str, int] = {}
        self._num_moves = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0

    def run(self, on_progress: OnProgress = lambda num_done: None) -> MeshRun:
        """Until every request has ended."""
        arrivals = arrivals_s(self._trace, self._settings.speedup)
        self._plan_changes(arrivals[0])
        for i, (arrival_s, request) in enumerate(zip(arrivals, self._trace, strict=True)):
            self._run_until(arrival_s)
            self._arrive(i, arrival_s, request)
            if i % 100 == 0:
                on_progress(i - len(self._open))
        busy_s = [worker.busy_s for worker in self._workers]
        self._run_until(math.inf)
        assert not self._open, "a request neither ended nor failed"
        window_s = len(busy_s) * arrivals[-1]
        return MeshRun(
            self._records,
            min(1.0, sum(busy_s) / window_s) if window_s else 0.0,
            sum(worker.num_steps for worker in self._workers),
            sum(worker.num_preemptions for worker in self._workers),
            self._picks,
            self._num_moves,
        )

    def _plan_changes(self, start_s: float) -> None:
        """What happens by itself: slow times of workers, and gateways' looks, each a part of an interval later."""
        for slow in self._settings.slowdowns:
            worker = self._workers[slow.worker]
            if slow.factor == math.inf:
                self._at(slow.from_s, functools.partial(setattr, worker, "stopped_until_s", slow.until_s))
                continue
            for time_s, slowness in ((slow.from_s, slow.factor), (slow.until_s, 1.0)):
                self._at(time_s, functools.partial(setattr, worker, "slowness", slowness))
        if self._moves_by_choice:
            for gateway in self._gateways:
                first_s = start_s + gateway.rebalancer.interval_s * (1 + gateway.number / self._settings.num_gateways)
                self._at(first_s, functools.partial(self._rebalance, gateway))

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
        token_ids = traced.token_ids(self._settings.vocab_size)
        words = token_ids.astype("<i4", copy=False).tobytes()
        self._records.append(RequestRecord(arrival_s, len(token_ids)))
        self._send(OpenRequest(i, words, traced.output_length, self._rank_others))

    def _send(self, request: OpenRequest) -> None:
        """To a worker it has not been at; the first time or after a move."""
        pick, request.ticket = self._gateways.pick(request.number, self._pick_request(request))
        request.pick, request.num_tokens = pick, 0
        number = self._number[pick.endpoints[0]] if pick.endpoints else self._envoy_choice(pick.prefix_hash)
        record = self._records[request.number]
        record.worker = number
        if not request.num_chosen:
            record.num_predicted_hit_tokens = pick.predicted_cached_tokens
        self._picks[pick.reason] = self._picks.get(pick.reason, 0) + 1
        seed = self._settings.seed + request.number
        asked = request.as_request(seed=seed, namespace_key=self._namespace_key, arrival_s=record.arrival_s)
        try:
            end_s = self._workers[number].offer(asked)
        except RequestRefused as refusal:
            record.error, record.end_s = refusal.failure.reason, self._now_s
            request.ticket.close()
            return
        self._open[request.number] = request
        self._gateways.tell()
        self._awaiting[number].add(request.number)
        if end_s is not None:
            self._at(end_s, lambda: self._end_step(number))

    def _pick_request(self, request: OpenRequest) -> PickRequest:
        words, block_size = request.known_words, self._settings.gpu.block_size
        return PickRequest(
            endpoints=[name for name in self._names if name not in request.avoided],
            block_keys=iter_word_keys(self._namespace_key, words, block_size),
            block_size=block_size,
            prompt_tokens=len(words) // 4,
            kv_tokens=self._kv_tokens,
        )

    def _rank_others(self, request: OpenRequest) -> Ranking | None:
        avoided = request.avoided | {self._names[self._records[request.number].worker]}
        others = replace(self._pick_request(request), endpoints=[name for name in self._names if name not in avoided])
        return self._gateways.of(request.number).rank(others) if others.endpoints else None

    def _rebalance(self, gateway: VirtualGateway) -> None:
        """A gateway's look at its own requests, and the next one an interval later."""
        mine = [request for request in self._open.values() if self._gateways.of(request.number) is gateway]
        for request in gateway.rebalancer.look(mine, self._names, MOVES_AT_ONCE):
            number = self._records[request.number].worker
            self._workers[number].cancel(request.number)
            self._awaiting[number].discard(request.number)
            request.ticket.close(request.num_tokens, was_slow=True)
            request.avoided.add(self._names[number])
            request.num_chosen += 1
            self._num_moves += 1
            self._send(request)
        if self._open or len(self._records) < len(self._trace):
            self._at(self._now_s + gateway.rebalancer.interval_s, lambda: self._rebalance(gateway))

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
            if not records[stream_id].first_token_s:
                records[stream_id].num_hit_tokens = num_hit_tokens
        if awaiting:
            for stream_id in awaiting.intersection(output.stream_ids.tolist()):
                awaiting.remove(stream_id)
                records[stream_id].first_token_s = records[stream_id].first_token_s or self._now_s
                self._open[stream_id].ticket.answered(self._names[number])
        if self._keep_tokens or self._moves_by_choice:
            for stream_id, token_id in zip(output.stream_ids.tolist(), output.token_ids.tolist(), strict=True):
                request = self._open[stream_id]
                request.token_ids.append(token_id)
                request.num_tokens += 1
        for finished in output.finished:
            request, record = self._open.pop(finished.stream_id), records[finished.stream_id]
            record.end_s = self._now_s
            record.num_output_tokens = request.max_tokens
            record.token_ids = request.token_ids.tolist() if self._keep_tokens else []
            request.ticket.close(request.num_tokens or request.max_tokens)
        for stream_id, failure in output.failed:
            records[stream_id].error, records[stream_id].end_s = failure.reason, self._now_s
            awaiting.discard(stream_id)
            self._open.pop(stream_id).ticket.close()
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
