from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_setup import set_up
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import Scheduler
from shoal.model_worker.simulated import SimulatedRunner, SimulatedStep
from shoal.model_worker.simulated_timing import LLAMA_8B_H100, FixedTimer, StepWork
from shoal.model_worker.step import StepPlan
from support.engine_requests import exactly, make_request

TABLE = Path(__file__).parents[3] / "benchmarks" / "results" / "h100.json"
STEP = 8192
TIMER = LLAMA_8B_H100.timer


def measured(name: str) -> float:
    rows: list[dict[str, Any]] = json.loads(TABLE.read_text())["rows"]
    return float(next(row["value"] for row in rows if row["name"] == f"llama-3.1-8b {name}"))


@pytest.mark.parametrize(
    ("name", "streams", "context"),
    # The table's contexts are those of the prompts; medians are over 256 (short prompts) and 80 tokens after them.
    [(f"decode {n} streams", n, 128 + 128) for n in (1, 8, 32, 128, 256)]
    + [(f"decode {n} streams at {c}", n, c + 40) for n, c in ((32, 8192), (8, 32768), (1, 32768))],
)
def test_decoding_takes_what_was_measured(name: str, streams: int, context: int) -> None:
    assert TIMER.step_s(StepWork(streams, streams * context)) * 1e3 == pytest.approx(measured(name), rel=0.1)


@pytest.mark.parametrize(
    ("name", "length", "cached"),
    [(f"first token of {n}", n, 0) for n in (64, 2048, 8192, 32768)]
    + [(f"first token of 64 after {n} cached", 64, n) for n in (8192, 32768)],
)
def test_a_first_token_takes_what_was_measured(name: str, length: int, cached: int) -> None:
    steps = [(min(STEP, length - start), cached + start) for start in range(0, length, STEP)]
    time_s = sum(TIMER.step_s(StepWork(0, 0, [step])) for step in steps)
    assert time_s * 1e3 == pytest.approx(measured(name), rel=0.1)


COUNTS = st.integers(0, 1 << 17)


@given(st.integers(0, 512), COUNTS, st.lists(st.tuples(st.integers(1, STEP), COUNTS), max_size=4), st.data())
def test_more_work_never_takes_less_time(
    decoding: int, kv_tokens: int, prefills: list[tuple[int, int]], data: st.DataObject
) -> None:
    more = StepWork(
        decoding + data.draw(st.integers(0, 64)),
        kv_tokens + data.draw(COUNTS),
        [(n + data.draw(st.integers(0, 64)), before + data.draw(COUNTS)) for n, before in prefills]
        + data.draw(st.lists(st.tuples(st.integers(1, 64), COUNTS), max_size=2)),
    )
    assert TIMER.step_s(more) >= TIMER.step_s(StepWork(decoding, kv_tokens, prefills)) > 0


class VirtualTime:
    now_s = 0.0

    def sleep(self, time_s: float) -> None:
        self.now_s += time_s


def steps_ahead(scheduler: Scheduler, runner: SimulatedRunner, max_pending_steps: int) -> Iterator[StepPlan]:
    """Runs a scheduler's work to its end; yields each plan when its result is taken in."""
    pending: list[tuple[StepPlan, SimulatedStep]] = []
    while (plan := scheduler.schedule()) is not None or pending:
        if plan is not None:
            pending.append((plan, runner.submit(plan)))
            if len(pending) < max_pending_steps:
                continue
        oldest, step = pending.pop(0)
        scheduler.update(oldest, step.result())
        yield oldest


def run(config: WorkerConfig, max_pending_steps: int) -> tuple[float, dict[int, list[int]]]:
    """Runs 512 requests of 512 + 128 tokens, handed over at once. Returns when they were done, and their tokens."""
    virtual = VirtualTime()
    scheduler = set_up(config, lambda stage, fraction: None).scheduler
    runner = SimulatedRunner(
        TIMER,
        num_blocks=LLAMA_8B_H100.num_blocks,
        num_slots=512,
        vocab_size=32000,
        max_pending_steps=max_pending_steps,
        clock=lambda: virtual.now_s,
        sleep=virtual.sleep,
    )
    for i in range(512):
        scheduler.add(make_request(i, [i] * 512, sampling=exactly(128)))
    tokens: dict[int, list[int]] = {i: [] for i in range(512)}
    for _ in steps_ahead(scheduler, runner, max_pending_steps):
        output = scheduler.take_output()
        for stream_id, token_id in zip(output.stream_ids.tolist(), output.token_ids.tolist(), strict=True):
            tokens[stream_id].append(token_id)
    return virtual.now_s, tokens


def test_a_full_worker_has_the_throughput_that_was_measured() -> None:
    config = WorkerConfig(device="simulated", simulated_model="llama-3.1-8b-h100", max_queued_requests=1024)
    time_s, tokens = run(config, 2)
    # Not one of the points that the coefficients were fitted to.
    assert 512 / time_s == pytest.approx(measured("512 x (512 + 128)"), rel=0.1)
    assert {len(t) for t in tokens.values()} == {128}
    assert run(config, 1)[1] == tokens, "tokens depend on how far ahead steps are planned"


def test_a_simulated_gpu_has_that_gpus_sizes_unless_told_otherwise() -> None:
    parts = set_up(WorkerConfig(device="simulated", simulated_model="llama-3.1-8b-h100"), lambda stage, fraction: None)
    info = parts.info
    assert (info.block_size, info.num_blocks, info.max_num_seqs, info.max_model_len) == (64, 6400, 512, 131072)
    config = WorkerConfig(device="simulated", simulated_model="llama-3.1-8b-h100", num_blocks=100, block_size=16)
    assert set_up(config, lambda stage, fraction: None).info.max_model_len == 1600


@pytest.mark.parametrize(("max_pending_steps", "ends_s"), [(1, [5.0, 11.0, 16.0]), (2, [5.0, 10.0, 15.0])])
def test_steps_submitted_ahead_follow_each_other_without_a_gap(max_pending_steps: int, ends_s: list[float]) -> None:
    virtual = VirtualTime()
    runner = SimulatedRunner(
        FixedTimer(5.0), num_blocks=1, num_slots=1, vocab_size=10, clock=lambda: virtual.now_s, sleep=virtual.sleep
    )
    scheduler = set_up(WorkerConfig(device="simulated"), lambda stage, fraction: None).scheduler
    scheduler.add(make_request(0, [1, 2], sampling=SamplingParams(max_tokens=3, ignore_eos=True)))
    steps: list[tuple[StepPlan, float]] = []
    for oldest in steps_ahead(scheduler, runner, max_pending_steps):
        steps.append((oldest, virtual.now_s))
        if len(steps) == 1:
            virtual.now_s += 1.0  # what the host does between steps
    assert [end_s for _, end_s in steps] == ends_s
