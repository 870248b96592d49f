"""Times the CPU operations one by one, and whole model steps through `CpuRunner`.

    python benchmarks/kernels_cpu.py --model model.gguf [--threads 2] [--dtype bfloat16] [--json kernels.json]

Every number is the fastest of many runs, so a busy machine shows less of itself. "% peak" compares with what the
script measures first: bytes read by all threads together from a buffer larger than the caches, and the arithmetic of a
large packed product.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from shoal.kernels.act_and_mul import act_and_mul
from shoal.kernels.act_and_mul import reference as act_reference
from shoal.kernels.paged_attention import AttentionOptions, AttentionShape, paged_attention, plan_attention
from shoal.kernels.paged_attention import reference as attention_reference
from shoal.kernels.rms_norm import add_rms_norm
from shoal.kernels.rms_norm import reference as norm_reference
from shoal.kernels.rope import reference as rope_reference
from shoal.kernels.rope import rope_and_cache
from shoal.model_worker.layers.linear import Linear
from shoal.model_worker.loader import LoadedModel, load_model
from shoal.model_worker.models.config import ModelConfig
from shoal.model_worker.runner.cpu import CpuRunner, layout_for
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.sampling.sampler import Sampler
from shoal.model_worker.step import Admission, StepPlan

# PYTHONSAFEPATH, which the Makefile sets, keeps a script's folder off sys.path. Not the repository's root: its folders
# `operator` and `kernels` are named like modules of others.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results

BLOCK_SIZE = 16
CONTEXT = 200


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the machine does at best."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one step: (query tokens, KV length)."""

    name: str
    sequences: tuple[tuple[int, int], ...]


BATCHES = (
    Batch("decode 1", ((1, CONTEXT),)),
    Batch("decode 16", ((1, CONTEXT),) * 16),
    Batch("decode 64", ((1, CONTEXT),) * 64),
    Batch("decode 1 at 4000", ((1, 4000),)),
    Batch("prefill 1024", ((1024, 1024),)),
    Batch("chunk 256 at 1024", ((256, 1024),)),
)


def fastest_s(call: Callable[[], object], budget_s: float = 0.4) -> float:
    """Seconds of the fastest call within a time budget, after two to warm up."""
    best, spent = float("inf"), 0.0
    for run in range(10_000):
        start = time.perf_counter()
        call()
        elapsed = time.perf_counter() - start
        spent += elapsed
        if run >= 2:
            best = min(best, elapsed)
        if run >= 5 and spent > budget_s:
            break
    return best


def measure_ceiling(dtype: torch.dtype) -> Ceiling:
    """Reads 256 MB, and multiplies matrices of 2048."""
    buffer = torch.ones(1 << 25, dtype=torch.int64)
    bytes_per_s = buffer.nbytes / fastest_s(buffer.sum, 1.0)
    linear, x = Linear(torch.randn(2048, 2048).to(dtype)), torch.randn(2048, 2048).to(dtype)
    return Ceiling(bytes_per_s, 2 * 2048**3 / fastest_s(lambda: linear(x), 1.0))


def report(batch: Batch, name: str, seconds: float, num_bytes: int, flops: int, ceiling: Ceiling) -> Row:
    """One line: time, rates, and the larger of the two shares of the ceiling; the peer is the time at the ceiling."""
    share = max(num_bytes / seconds / ceiling.bytes_per_s, flops / seconds / ceiling.flops_per_s)
    print(
        f"  {name:<16} {seconds * 1e6:>9.1f} us {num_bytes / seconds / 1e9:>7.1f} GB/s "
        f"{flops / seconds / 1e9:>7.0f} GFLOP/s {share:>5.0%} peak"
    )
    return Row(f"{batch.name}: {name}", seconds * 1e6, "us", seconds * share * 1e6, share)


def time_operations(config: ModelConfig, dtype: torch.dtype, ceiling: Ceiling) -> Iterator[Row]:
    """Each operation of a layer, for each batch."""
    for batch in BATCHES:
        num_tokens = sum(queries for queries, _ in batch.sequences)
        print(f"{batch.name}: {num_tokens} tokens")
        yield from time_attention(batch, config, dtype, ceiling)
        size, rows = dtype.itemsize, num_tokens
        x, residual = (torch.randn(rows, config.hidden_size).to(dtype) for _ in range(2))
        weight = torch.ones(config.hidden_size, dtype=dtype)
        seconds = fastest_s(partial(add_rms_norm, x, residual, weight, 1e-5))
        moved = norm_reference.bytes_moved(rows, config.hidden_size, size, residual=True)
        flops = norm_reference.flops(rows, config.hidden_size)
        yield report(batch, "add_rms_norm", seconds, moved, flops, ceiling)
        gate_up = torch.randn(rows, 2 * config.intermediate_size).to(dtype)
        seconds = fastest_s(partial(act_and_mul, gate_up))
        moved = act_reference.bytes_moved(rows, config.intermediate_size, size)
        flops = act_reference.flops(rows, config.intermediate_size)
        yield report(batch, "act_and_mul", seconds, moved, flops, ceiling)
        yield from time_linears(batch, rows, config, dtype, ceiling)


def time_attention(batch: Batch, config: ModelConfig, dtype: torch.dtype, ceiling: Ceiling) -> Iterator[Row]:
    """Rotary embedding with KV write, and attention; layers in turn, so that KV does not stay in the caches."""
    layout = layout_for(config, BLOCK_SIZE, dtype)
    counts = [-(-length // BLOCK_SIZE) for _, length in batch.sequences]
    cache = layout.allocate(sum(counts)).normal_()
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    blocks = torch.randperm(sum(counts)).int()
    first = 0
    for row, count in enumerate(counts):
        tables[row, :count] = blocks[first : first + count]
        first += count
    starts = torch.tensor([0, *(queries for queries, _ in batch.sequences)]).cumsum(0).int()
    lengths = torch.tensor([length for _, length in batch.sequences], dtype=torch.int32)
    rows = torch.arange(len(counts), dtype=torch.int32)
    shape = AttentionShape(layout, config.num_heads)
    options = AttentionOptions(config.head_dim**-0.5, config.layers[0].sliding_window)
    plan = plan_attention(shape, starts, lengths, tables, rows)
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    qkv = torch.randn(int(starts[-1]), width).to(dtype)
    positions = torch.cat([torch.arange(n - q, n, dtype=torch.int32) for q, n in batch.sequences])
    owner = torch.repeat_interleave(rows, starts.diff()).long()
    slots = tables[owner, positions.long() // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    angles = torch.rand(4096, config.head_dim)
    layer = itertools.count()

    def attend() -> None:
        paged_attention(qkv, cache.select(1, next(layer) % config.num_layers), plan, options)

    def rope() -> None:
        at = cache.select(1, next(layer) % config.num_layers)
        rope_and_cache(qkv, angles, positions, slots, at, layout, config.num_heads)

    seconds = fastest_s(lambda: plan_attention(shape, starts, lengths, tables, rows).native(options))
    print(f"  {'plan (a step)':<16} {seconds * 1e6:>9.1f} us")
    yield Row(f"{batch.name}: plan_attention", seconds * 1e6, "us", None, None)
    moved, flops = attention_reference.bytes_moved(plan, options), attention_reference.flops(plan, options)
    yield report(batch, "paged_attention", fastest_s(attend), moved, flops, ceiling)
    moved = rope_reference.bytes_moved(len(qkv), config.num_heads, layout)
    flops = rope_reference.flops(len(qkv), config.num_heads, layout)
    yield report(batch, "rope_and_cache", fastest_s(rope), moved, flops, ceiling)


def time_linears(batch: Batch, rows: int, config: ModelConfig, dtype: torch.dtype, ceiling: Ceiling) -> Iterator[Row]:
    """A layer's four products, layers in turn as in a step."""
    kv = config.num_kv_heads * config.head_dim
    q = config.num_heads * config.head_dim
    for name, wide, narrow in (
        ("qkv_proj", q + 2 * kv, config.hidden_size),
        ("o_proj", config.hidden_size, q),
        ("gate_up_proj", 2 * config.intermediate_size, config.hidden_size),
        ("down_proj", config.hidden_size, config.intermediate_size),
    ):
        linears = [Linear(torch.randn(wide, narrow).to(dtype)) for _ in range(config.num_layers)]
        x, turn = torch.randn(rows, narrow).to(dtype), itertools.cycle(linears)
        seconds = fastest_s(partial(_call_next, turn, x))
        moved = (wide * narrow + rows * (wide + narrow)) * dtype.itemsize
        yield report(batch, name, seconds, moved, 2 * rows * wide * narrow, ceiling)


def _call_next(linears: Iterator[Linear], x: torch.Tensor) -> None:
    next(linears)(x)


def time_steps(loaded: LoadedModel) -> Iterator[Row]:
    """Steps through the runner, greedy sampling included."""
    print("whole steps")
    for num_seqs in (1, 4, 16, 64):
        times = decode_times(loaded, num_seqs)
        best, median = times[0], times[len(times) // 2]
        print(
            f"  decode {num_seqs:<5} {best * 1e3:>8.2f} ms ({num_seqs / best:>6.0f} tok/s)"
            f"   median {median * 1e3:>8.2f} ms ({num_seqs / median:>6.0f} tok/s)"
        )
        yield Row(f"step: decode {num_seqs}", best * 1e3, "ms", None, None)
    for chunk in (256, 512, 1024):
        seconds = prefill_s(loaded, 1024, chunk)
        print(f"  prefill 1024 by {chunk:<5} {seconds * 1e3:>8.1f} ms ({1024 / seconds:>6.0f} tok/s)")
        yield Row(f"steps: prefill 1024 by {chunk}", seconds * 1e3, "ms", None, None)


def make_runner(loaded: LoadedModel, num_seqs: int, max_model_len: int) -> CpuRunner:
    """Room for `num_seqs` full sequences."""
    return CpuRunner(
        loaded.model,
        loaded.config,
        num_blocks=num_seqs * -(-max_model_len // BLOCK_SIZE),
        block_size=BLOCK_SIZE,
        max_num_seqs=num_seqs,
        max_model_len=max_model_len,
        sampler=Sampler(num_seqs, loaded.config.vocab_size),
        dtype=loaded.dtype,
    )


def admissions(num_seqs: int, num_tokens: int, max_model_len: int) -> tuple[Admission, ...]:
    """Greedy sequences of arbitrary tokens, each with all the blocks it can need."""
    per_seq = -(-max_model_len // BLOCK_SIZE)
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    return tuple(
        Admission(
            slot,
            np.arange(100 + slot, 100 + slot + num_tokens, dtype=np.int32),
            num_tokens,
            0,
            tuple(range(slot * per_seq, (slot + 1) * per_seq)),
            sampling,
            seed=0,
            choice=0,
        )
        for slot in range(num_seqs)
    )


def step_plan(counts: list[int], samples: bool, admitted: tuple[Admission, ...] = ()) -> StepPlan:
    """counts[i] tokens of slot i."""
    slots = np.arange(len(counts), dtype=np.int32)
    return StepPlan((), admitted, (), (), slots, np.array(counts, np.int32), np.full(len(counts), samples), ())


def decode_times(loaded: LoadedModel, num_seqs: int, num_steps: int = 60) -> list[float]:
    """Seconds of decoding steps at a context of some 200 tokens, sorted."""
    runner = make_runner(loaded, num_seqs, 288)
    admitted = admissions(num_seqs, CONTEXT - num_steps // 2, 288)
    for first in range(0, num_seqs, 8):
        part = admitted[first : first + 8]
        counts = np.full(len(part), CONTEXT - num_steps // 2, np.int32)
        slots = np.array([admission.slot for admission in part], np.int32)
        runner.execute(StepPlan((), part, (), (), slots, counts, np.ones(len(part), np.bool_), ()))
    plan = step_plan([1] * num_seqs, True)
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        runner.execute(plan)
        times.append(time.perf_counter() - start)
    return sorted(times)


def prefill_s(loaded: LoadedModel, num_tokens: int, chunk: int, num_runs: int = 5) -> float:
    """Seconds from nothing to the first token, computed in chunks; the fastest of some runs."""
    best = float("inf")
    for _ in range(num_runs):
        runner = make_runner(loaded, 1, num_tokens + BLOCK_SIZE)
        admitted = admissions(1, num_tokens, num_tokens + BLOCK_SIZE)
        start = time.perf_counter()
        for first in range(0, num_tokens, chunk):
            last = first + chunk >= num_tokens
            runner.execute(step_plan([chunk], last, admitted if first == 0 else ()))
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Parses the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file or a safetensors directory")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["operations", "steps"])
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    loaded = load_model(arguments.model, dtype=arguments.dtype)
    print(f"{arguments.threads} threads of {os.cpu_count()} CPUs, {arguments.dtype}, load {os.getloadavg()[0]:.1f}")
    rows: list[Row] = []
    with torch.inference_mode():
        if arguments.only != "steps":
            ceiling = measure_ceiling(loaded.dtype)
            print(f"ceiling: {ceiling.bytes_per_s / 1e9:.1f} GB/s, {ceiling.flops_per_s / 1e9:.0f} GFLOP/s")
            rows += time_operations(loaded.config, loaded.dtype, ceiling)
        if arguments.only != "operations":
            rows += time_steps(loaded)
    if arguments.json is not None:
        settings = {"model": arguments.model.name, "dtype": arguments.dtype, "threads": arguments.threads}
        write_results(arguments.json, rows, settings, benchmark="kernels_cpu")


if __name__ == "__main__":
    main()
