"""What a KV store does to a GPU worker's engine: prefixes loaded beside computed ones, and what storing costs.

    python benchmarks/kv_worker_cuda.py --json kv_worker_cuda.json

Llama-3.1-8B's shape with made-up weights, blocks of 64 tokens. Two engines in this process, one with a store (a process
of its own), take turns. A prefix comes with new tokens each time: 64 as when vLLM was measured, with its KV
offloading to 16 GiB of CPU memory on the same kind of GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

from kv_worker import Side, load, make_prompt, running_store
from rows import Row, write_results
from shoal.model_worker.config import WorkerConfig

MODEL = Path(__file__).resolve().parent / "models" / "llama-3.1-8b.json"
NEW_TOKENS = (64, 1024)
RELOAD_BARS_MS = {8192: 35.0, 32_768: 110.0}
PEER_RELOAD_MS = {8192: 55.9, 32_768: 155.3}
"""vLLM 0.25.1 on an H100 80GB HBM3."""
MIN_BYTES_PER_S = 45e9
MAX_STORING_COST = 0.02
PEER_STORING_COST = 0.04


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", type=Path, default=MODEL, help="a config.json; weights are made up")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--prefix", type=int, nargs="+", default=sorted(RELOAD_BARS_MS))
    parser.add_argument("--num-blocks", type=int, default=1100, help="KV blocks of each of the two engines")
    parser.add_argument("--store-bytes", type=int, default=16 << 30)
    parser.add_argument("--codec", default="none", choices=("none", "fp8"))
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    settings = {"model": arguments.model.stem, "device": device, "rounds": arguments.rounds, "codec": arguments.codec}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_store(Path(folder), arguments.store_bytes) as socket,
    ):
        model = Path(folder) / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(json.loads(arguments.model.read_text())))
        common = WorkerConfig(
            model=str(model),
            load_format="dummy",
            device=arguments.device,
            block_size=64,
            num_blocks=arguments.num_blocks,
            max_model_len=max(arguments.prefix) + 2 * max(NEW_TOKENS),
        )
        stored, plain = load(replace(common, kv_store_socket=socket, kv_codec=arguments.codec)), load(common)
        rows = list(_measure(stored, plain, random.Random(0), arguments.rounds, arguments.prefix))
        assert stored.parts.offload is not None
        print(stored.parts.offload.stats)
        print(f"prompts seem to be computed at {stored.parts.offload.rate.tokens_per_s:,.0f} tokens/s")
        stored.parts.offload.close()
    for row in rows:
        print(f"{row.name:52} {row.value:10.3f} {row.unit:8} {row.peer or 0:10.3f} {row.ratio or 0:8.2f}")
    if arguments.json:
        write_results(arguments.json, rows, settings)


def _measure(
    stored: Side, plain: Side, randomness: random.Random, rounds: int, prefixes: Sequence[int]
) -> Iterator[Row]:
    for side in (stored, plain):
        side.run([make_prompt(randomness, 4096)], 4)
    for num_tokens in prefixes:
        prefix = make_prompt(randomness, num_tokens)
        for num_new in NEW_TOKENS:
            yield from _measure_reload(stored, plain, randomness, rounds, prefix, num_new)
    yield _measure_storing(stored, plain, randomness, rounds, max(prefixes))


def _measure_reload(
    stored: Side, plain: Side, randomness: random.Random, rounds: int, prefix: list[int], num_new: int
) -> Iterator[Row]:
    num_tokens, hits, loads, num_alike = len(prefix), [], [], 0
    for number in range(rounds + 2):
        prompt = prefix + make_prompt(randomness, num_new)
        hit, bytes_before = plain.run([prompt], 4), _loaded_bytes(stored)
        load = stored.run([prompt], 4)
        stored.forget()
        if number > 1:  # the first computes, and the second of a size may still compile
            _check_cached(plain, hit.num_cached, num_tokens)
            _check_cached(stored, load.num_cached, num_tokens)
            hits.append(hit.first_token_s)
            loads.append(load.first_token_s)
            num_alike += hit.token_ids == load.token_ids
    load_s, hit_s = statistics.median(loads), statistics.median(hits)
    print(
        f"{num_tokens:,} stored and {num_new} new: tokens as of the prefix on the device {num_alike} of {rounds} times"
    )
    name = f"first token, {num_tokens:,} tokens stored and {num_new:,} new"
    if num_new > NEW_TOKENS[0]:
        yield Row(name, 1e3 * load_s, "ms", None, None)
        yield Row(f"the same, held by the device: {num_tokens:,} and {num_new:,}", 1e3 * hit_s, "ms", None, None)
        return
    bar_ms, rate = RELOAD_BARS_MS.get(num_tokens, 0.0), (_loaded_bytes(stored) - bytes_before) / (load_s - hit_s)
    yield Row(name, 1e3 * load_s, "ms", PEER_RELOAD_MS.get(num_tokens), bar_ms / (1e3 * load_s))
    yield Row(f"the same, held by the device: {num_tokens:,}", 1e3 * hit_s, "ms", None, None)
    yield Row(f"bytes over the difference, {num_tokens:,}", rate / 1e9, "GB/s", 53.5, rate / MIN_BYTES_PER_S)


def _check_cached(side: Side, num_cached: int, num_expected: int) -> None:
    if num_cached < num_expected:
        stats = side.parts.offload and side.parts.offload.stats
        raise SystemExit(f"only {num_cached} of {num_expected} tokens were cached or loaded: {stats}")


def _loaded_bytes(side: Side) -> int:
    assert side.parts.offload is not None
    return side.parts.offload.stats.loaded_bytes


def _measure_storing(stored: Side, plain: Side, randomness: random.Random, rounds: int, num_tokens: int) -> Row:
    times: dict[int, list[float]] = {id(stored): [], id(plain): []}
    for number in range(rounds + 1):
        prompt = make_prompt(randomness, num_tokens)
        for side in (stored, plain) if number % 2 else (plain, stored):
            seconds = side.run([prompt], 1).first_token_s
            side.forget()
            if number:
                times[id(side)].append(seconds)
    ours, theirs = statistics.median(times[id(stored)]), statistics.median(times[id(plain)])
    cost = ours / theirs - 1
    print(f"cold {num_tokens:,} tokens: {1e3 * ours:.1f} ms storing, {1e3 * theirs:.1f} ms without")
    name = f"cold {num_tokens:,} tokens, stored meanwhile: more time"
    return Row(name, 100 * cost, "%", 100 * PEER_STORING_COST, MAX_STORING_COST / max(cost, 1e-4))


if __name__ == "__main__":
    main()
