from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from shoal.blocks import namespace_key
from shoal.gateway.routing.policies import policy_of
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine import Engine
from shoal.model_worker.engine_setup import set_up
from shoal.model_worker.messages import Add, Command, StepFrame, Stop
from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.simulated import SimulatedRunner
from shoal.rpc.errors import InvalidArgument
from shoal.simulator.mesh import MeshSettings, RequestRecord, VirtualMesh
from shoal.simulator.oracle import oracle_hit_tokens
from shoal.simulator.replay import POLICY_NAMES, compare, parse_policies
from shoal.simulator.trace import TraceRequest, arrivals_s
from support.traces import conversations, small_gpu, without_reuse

VOCAB = 1000


def run(trace: Sequence[TraceRequest], policy: str = "shoal", **changes: object) -> list[RequestRecord]:
    mesh_settings = replace(MeshSettings(num_workers=2, gpu=small_gpu(), vocab_size=VOCAB), **changes)  # type: ignore[arg-type]
    (name,) = parse_policies(policy)
    return VirtualMesh(trace, policy_of(name), mesh_settings, keep_tokens=True).run().records


class VirtualEngine:
    """The real engine loop, whose clock moves when it waits for its device or for requests."""

    def __init__(self, arrivals: Sequence[tuple[float, Request]], num_blocks: int) -> None:
        self.now_s = 0.0
        self.arrivals = list(arrivals)
        gpu = small_gpu(num_blocks)
        config = WorkerConfig(
            device="simulated",
            simulated_vocab_size=VOCAB,
            block_size=gpu.block_size,
            num_blocks=num_blocks,
            max_num_seqs=gpu.max_num_seqs,
            max_num_batched_tokens=gpu.max_num_batched_tokens,
            max_queued_requests=1000,
            max_queued_tokens=1 << 30,
        )
        parts = set_up(config, lambda stage, fraction: None)
        runner = SimulatedRunner(
            gpu.timer,
            num_blocks=num_blocks,
            num_slots=gpu.max_num_seqs,
            vocab_size=VOCAB,
            max_pending_steps=2,
            clock=self.clock,
            sleep=self.sleep,
        )
        self.tokens: dict[int, list[int]] = {}
        self.hits: dict[int, int] = {}
        self.ends_s: dict[int, float] = {}
        self.first_s: dict[int, float] = {}
        Engine(parts.scheduler, parts.cache, runner, self, self.emit, clock=self.clock).run()

    def clock(self) -> float:
        return self.now_s

    def wait(self, timeout_s: float) -> None:
        raise AssertionError("nothing but a KV store is waited for")

    def sleep(self, time_s: float) -> None:
        self.now_s += time_s

    def receive(self, *, wait: bool) -> Iterable[Command]:
        if wait and not self.arrivals:
            return [Stop()]
        if wait:
            self.now_s = max(self.now_s, self.arrivals[0][0])
        here = [request for arrival_s, request in self.arrivals if arrival_s <= self.now_s]
        self.arrivals = self.arrivals[len(here) :]
        return [Add(request) for request in here]

    def emit(self, frame: StepFrame) -> None:
        assert not frame.failed
        stream_ids = np.frombuffer(frame.stream_ids, np.int64).tolist()
        for stream_id, token_id in zip(stream_ids, np.frombuffer(frame.token_ids, np.int32).tolist(), strict=True):
            self.tokens.setdefault(stream_id, []).append(token_id)
            self.first_s.setdefault(stream_id, self.now_s)
        self.hits |= dict(frame.started)
        self.ends_s |= {finished.stream_id: self.now_s for finished in frame.finished}


@pytest.mark.parametrize("num_blocks", [256, 120])
@pytest.mark.parametrize("gap_ms", [400.0, 30.0])
def test_a_worker_does_what_the_real_engine_loop_does_when_it_does(num_blocks: int, gap_ms: float) -> None:
    # Of requests at one moment the mesh hands over the first first, and the engine takes all.
    trace = [
        structs.replace(r, timestamp=r.timestamp + i / 100) for i, r in enumerate(conversations(60, gap_ms=gap_ms))
    ]
    records = run(trace, num_workers=1, gpu=small_gpu(num_blocks))
    requests = [
        Request(
            stream_id=i,
            request_id=str(i),
            prompt_token_ids=tuple(traced.token_ids(VOCAB).tolist()),
            sampling=SamplingParams(max_tokens=traced.output_length, ignore_eos=True),
            seed=i,
            namespace_key=namespace_key("other", "other"),
            arrival_s=arrival_s,
        )
        for i, (arrival_s, traced) in enumerate(zip(arrivals_s(trace, 1.0), trace, strict=True))
    ]
    engine = VirtualEngine([(request.arrival_s, request) for request in requests], num_blocks)
    assert engine.tokens == {i: record.token_ids for i, record in enumerate(records)}
    assert engine.hits == {i: record.num_hit_tokens for i, record in enumerate(records)}
    assert engine.first_s == pytest.approx({i: record.first_token_s for i, record in enumerate(records)})
    assert engine.ends_s == pytest.approx({i: record.end_s for i, record in enumerate(records)})


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 1000),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from(POLICY_NAMES),
    st.sampled_from([0.0, 50.0, 2000.0]),
    st.sampled_from([110, 256]),
    st.sampled_from([0.0, 0.005, 3.0]),
)
def test_every_request_ends_once_in_order_and_with_all_its_tokens(
    seed: int, num: int, workers: int, policy: str, gap_ms: float, num_blocks: int, delay_s: float
) -> None:
    trace = conversations(num, seed=seed, gap_ms=gap_ms)
    records = run(trace, policy, num_workers=workers, gpu=small_gpu(num_blocks), kv_event_delay_s=delay_s)
    assert len(records) == num
    for record, request in zip(records, trace, strict=True):
        assert record.error is None
        assert len(record.token_ids) == record.num_output_tokens == request.output_length
        assert record.arrival_s < record.first_token_s <= record.end_s
        assert 0 <= record.num_hit_tokens < record.num_prompt_tokens == request.input_length
        assert 0 <= record.worker < workers
    total = sum(record.num_hit_tokens for record in records)
    assert total <= sum(oracle_hit_tokens(trace, num_blocks=1 << 30, block_size=64))


def test_equal_runs_are_equal_and_tokens_depend_on_nothing_but_prompt_and_seed() -> None:
    trace = conversations(40)
    assert run(trace) == run(trace)
    by_policy = [[record.token_ids for record in run(trace, policy)] for policy in ("shoal", "round_robin")]
    assert by_policy[0] == by_policy[1]
    assert [record.token_ids for record in run(trace, seed=1)] != by_policy[0]


def test_the_router_learns_of_caches_only_after_the_delay() -> None:
    turns = [TraceRequest(t * 1e3, 512 * (i + 2), 2, tuple(range(i + 2))) for i, t in enumerate((0, 10, 20))]
    others = [TraceRequest(t * 1e3 + 1, 600, 2, (100 + t, 200 + t)) for t in (0, 10, 20)]
    trace = sorted(turns + others, key=lambda request: request.timestamp)
    prompt = [record for record, request in zip(run(trace), trace, strict=True) if request in turns]
    assert [record.num_predicted_hit_tokens for record in prompt] == [0, 1024, 1536]
    assert len({record.worker for record in prompt}) == 1
    late = [record for record, r in zip(run(trace, kv_event_delay_s=100.0), trace, strict=True) if r in turns]
    assert [record.num_predicted_hit_tokens for record in late] == [0, 0, 0]


def test_a_prompt_that_no_worker_can_hold_is_an_error_and_the_rest_go_on() -> None:
    trace = without_reuse(10)
    trace[3] = replace_lengths(trace[3], 512 * 40)
    records = run(trace, gpu=small_gpu(64))
    assert [record.error for record in records] == [None] * 3 + ["INVALID_ARGUMENT"] + [None] * 6


def replace_lengths(request: TraceRequest, input_length: int) -> TraceRequest:
    return TraceRequest(request.timestamp, input_length, 1, tuple(range(1000, 1000 + input_length // 512)))


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [
        (1 << 20, [0, 0, 960, 448, 1024]),
        (20, [0, 0, 768, 256, 768]),  # the last four blocks of the older prompt are gone each time
        (12, [0, 0, 256, 0, 256]),
        (8, [0, 0, 0, 0, 0]),
    ],
)
def test_the_oracle_is_one_cache_that_forgets_the_oldest(num_blocks: int, expected: list[int]) -> None:
    prompts = [(1024, (1, 2)), (512, (9,)), (1024, (1, 2)), (512, (9,)), (1100, (1, 2, 3))]
    trace = [TraceRequest(i, length, 1, ids) for i, (length, ids) in enumerate(prompts)]
    assert oracle_hit_tokens(trace, num_blocks=num_blocks, block_size=64) == expected


def test_policies_side_by_side_at_a_part_of_saturation() -> None:
    trace = conversations(120, num_sessions=12)
    mesh = MeshSettings(num_workers=3, gpu=small_gpu(200), vocab_size=VOCAB)
    comparison = compare(trace, ("shoal", "round_robin"), mesh, load=0.7)
    by_name = {result.policy: result for result in comparison.results}
    assert by_name["shoal"].hit_ratio > by_name["round_robin"].hit_ratio
    assert by_name["shoal"].hit_ratio <= comparison.oracle_hit_ratio
    assert [result.requests for result in comparison.results] == [120, 120]
    assert compare(trace, ("shoal",), mesh, load=1.4).speedup == pytest.approx(2 * comparison.speedup)


def test_policies_are_named_or_refused() -> None:
    assert parse_policies("all") == POLICY_NAMES
    assert parse_policies("shoal, round_robin,shoal") == ("shoal", "round_robin")
    with pytest.raises(InvalidArgument, match="'best' is no policy; give all, or some of shoal"):
        parse_policies("shoal,best")
    with pytest.raises(InvalidArgument, match="arrive at once"):
        compare(without_reuse(3, gap_ms=0.0), ("shoal",), MeshSettings(gpu=small_gpu()), load=0.5)
