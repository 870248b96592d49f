from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from shoal.client import InvalidArgument
from shoal.client.bench.driver import Load, drive
from shoal.client.bench.records import Prompt, Record
from shoal.client.bench.workload import Lengths, parse_lengths, poisson_arrivals, random_prompts, read_prompts
from shoal.client.cli.bench import parse_slo


def test_poisson_arrivals_start_at_once_keep_their_rate_and_repeat_with_the_seed() -> None:
    arrivals = poisson_arrivals(20_001, 50.0, seed=3)
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert arrivals[0] == 0
    assert min(gaps) >= 0
    assert mean == pytest.approx(1 / 50, rel=0.03)  # four standard errors of 20,000 gaps
    assert deviation == pytest.approx(mean, rel=0.05)  # what sets an exponential apart from a fixed pace
    assert arrivals == poisson_arrivals(20_001, 50.0, seed=3)
    assert arrivals != poisson_arrivals(20_001, 50.0, seed=4)
    assert poisson_arrivals(1, 50.0, seed=0) == [0.0]


def test_random_prompts_have_the_lengths_and_the_vocabulary() -> None:
    prompts = random_prompts(200, Lengths(4, 8), Lengths(3, 3), vocab_size=50, seed=1)
    lengths = {len(prompt.token_ids or ()) for prompt in prompts}
    assert lengths == {4, 5, 6, 7, 8}
    assert {prompt.max_tokens for prompt in prompts} == {3}
    assert all(0 <= i < 50 for prompt in prompts for i in prompt.token_ids or ())
    assert prompts == random_prompts(200, Lengths(4, 8), Lengths(3, 3), vocab_size=50, seed=1)


def test_lengths() -> None:
    assert parse_lengths("64", "x") == Lengths(64, 64)
    assert parse_lengths("64:128", "x") == Lengths(64, 128)
    for bad in ("", "0", "a", "9:3", "-1"):
        with pytest.raises(InvalidArgument, match="input_len"):
            parse_lengths(bad, "input_len")


def test_prompts_from_files(tmp_path: Path) -> None:
    text = tmp_path / "p.txt"
    text.write_text("one\n\ntwo\n")
    assert [p.text for p in read_prompts(text, 3, Lengths(5, 5), 0)] == ["one", "two", "one"]
    lines = tmp_path / "p.jsonl"
    lines.write_text(
        '{"prompt": "x", "max_tokens": 9}\n{"token_ids": [1, 2]}\n{"messages": [{"role": "user", "content": "q"}]}\n'
    )
    assert read_prompts(lines, 3, Lengths(5, 5), 0) == [
        Prompt(9, text="x"),
        Prompt(5, token_ids=(1, 2)),
        Prompt(5, messages=({"role": "user", "content": "q"},)),
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', '{"prompt": 3}', '{"prompt": "a", "token_ids": [1]}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(InvalidArgument, match="line 2"):
        read_prompts(path, 5, Lengths(1, 1), 0)


def test_objectives() -> None:
    assert parse_slo(None) == {}
    assert parse_slo("ttft=200ms, itl=0.05s") == {"ttft": pytest.approx(0.2), "itl": 0.05}
    for bad in ("ttft", "ttft=5", "ttft=-1ms", "speed=1s", "ttft=xms"):
        with pytest.raises(InvalidArgument, match="slo"):
            parse_slo(bad)


class FakeClock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, wait_s: float) -> None:
        self.now_s += wait_s


class GatedBackend:
    """Holds requests until the test lets them go; counts how many are open."""

    def __init__(self, clock: FakeClock, gated: bool) -> None:
        self.clock = clock
        self.gate = asyncio.Semaphore(0) if gated else None
        self.open = self.most_open = 0
        self.sent_s: list[float] = []
        self.changed = asyncio.Event()

    async def send(self, prompt: Prompt) -> Record:
        self.sent_s.append(self.clock() - 100)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.changed.set()
        if self.gate is not None:
            await self.gate.acquire()
        self.open -= 1
        return Record(start_s=0, end_s=self.clock(), output_tokens=prompt.max_tokens)


async def test_fixed_concurrency_is_kept_and_never_exceeded() -> None:
    clock = FakeClock()
    backend = GatedBackend(clock, gated=True)
    assert backend.gate is not None
    records: list[Record] = []
    recorded = asyncio.Event()

    def on_record(record: Record) -> None:
        records.append(record)
        recorded.set()

    load = Load(concurrency=3)
    running = asyncio.create_task(drive(backend, [Prompt(i) for i in range(8)], load, on_record, clock))
    while len(records) < 8:
        while backend.open < min(3, 8 - len(records)):
            backend.changed.clear()
            await asyncio.wait_for(backend.changed.wait(), 5)
        backend.gate.release()
        await asyncio.wait_for(recorded.wait(), 5)
        recorded.clear()
    await running
    assert backend.most_open == 3
    assert sorted(record.output_tokens for record in records) == list(range(8))


async def test_requests_leave_at_their_times() -> None:
    clock = FakeClock()
    backend = GatedBackend(clock, gated=False)
    load = Load(concurrency=1, arrivals_s=[0.0, 1.5, 1.6, 4.0])
    await drive(backend, [Prompt(1)] * 4, load, clock=clock, sleep=clock.sleep)
    assert backend.sent_s == pytest.approx([0.0, 1.5, 1.6, 4.0])
