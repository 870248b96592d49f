"""What `engine.py --device cuda` measures: whole models with random weights, and attention by itself, on one GPU.

The engine runs in this process, without the gRPC front. Decoding times are medians over the steps in which every stream
got a token; first-token times run from handing a request over to its first frame. Beside them stand the numbers of
`peers/vllm_h100.json`, measured on the same kind of GPU at another time.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.messages import StepFrame

sys.path.insert(0, str(Path(__file__).resolve().parent))

from attention_cuda import measure_attention
from engine_sides import Prompts, ShoalSide
from rows import Row, write_results

FOLDER = Path(__file__).resolve().parent
LOWER_IS_BETTER = ("ms", "us", "s")


@dataclass(frozen=True, slots=True)
class ModelRuns:
    """What is measured of one model."""

    name: str
    max_model_len: int
    streams: tuple[int, ...]
    first_tokens: tuple[int, ...]
    long_contexts: tuple[tuple[int, int], ...] = ()
    """(streams, context)."""
    cached_prefixes: tuple[int, ...] = ()


RUNS = (
    ModelRuns("smollm2-135m", 8192, (1, 8, 32, 128, 256), (64, 2048)),
    ModelRuns("qwen3-0.6b", 40960, (1, 8, 32, 128, 256), (2048, 8192)),
    ModelRuns(
        "llama-3.1-8b",
        33024,
        (1, 8, 32, 128, 256),
        (64, 2048, 8192, 32768),
        ((32, 8192), (8, 32768), (1, 32768)),
        (8192, 32768),
    ),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the engine: when, how many tokens it carried, how many its step computed."""

    at_s: float
    num_output: int
    num_computed: int


class Measured:
    """One engine, driven and timed."""

    def __init__(self, runs: ModelRuns, folder: Path, options: argparse.Namespace) -> None:
        path = folder / runs.name
        path.mkdir()
        (path / "config.json").write_text((FOLDER / "models" / f"{runs.name}.json").read_text())
        start_s = time.perf_counter()
        config = WorkerConfig(
            model=str(path),
            device="cuda",
            load_format="dummy",
            block_size=64,
            max_model_len=runs.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            gpu_memory_utilization=0.85,
            max_queued_requests=4096,
            max_queued_tokens=1 << 24,
        )
        self._side = ShoalSide(config)
        self.ready_s = time.perf_counter() - start_s
        self._randomness = random.Random(options.seed)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Fresh ones, so that no cache has them."""
        generator = np.random.default_rng(self._randomness.getrandbits(32))
        tokens: list[list[int]] = generator.integers(0, self._side.vocab_size, (count, length)).tolist()
        return tokens

    def run(self, prompts: Prompts, num_tokens: int) -> tuple[float, list[Frame]]:
        """When the prompts were handed over, and the frames that answered."""
        frames: list[Frame] = []

        def note(frame: StepFrame) -> None:
            if frame.failed:
                raise RuntimeError(f"the engine refused a request: {frame.failed[0]}")
            frames.append(Frame(time.perf_counter(), len(frame.stream_ids) // 8, frame.num_step_tokens))

        start_s = self._side.drive(prompts, num_tokens, note)
        return start_s, frames

    def decode_ms(self, streams: int, context: int, num_tokens: int) -> float:
        """Between tokens with all streams running."""
        _, frames = self.run(self.prompts(streams, context), num_tokens)
        gaps = [
            after.at_s - before.at_s
            for before, after in itertools.pairwise(frames)
            if before.num_output == after.num_output == after.num_computed == streams
        ]
        return statistics.median(gaps) * 1e3

    def first_token_ms(self, prompts: Prompts) -> float:
        """Until the first token of one request."""
        start_s, frames = self.run(prompts, 1)
        return (next(frame.at_s for frame in frames if frame.num_output) - start_s) * 1e3

    def requests_per_s(self, count: int, prompt_len: int, output_len: int) -> float:
        """All handed over at once."""
        start_s, frames = self.run(self.prompts(count, prompt_len), output_len)
        return count / (frames[-1].at_s - start_s)


def measure_model(runs: ModelRuns, folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """(name, value, unit) of everything asked for of one model."""
    engine = Measured(runs, folder, options)
    yield f"{runs.name} ready, cold", engine.ready_s, "s"
    engine.run(engine.prompts(2, 64), 4)

    def median(count: int, measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(count))

    repeats = options.repeats
    for streams in runs.streams:
        value = median(repeats, lambda n=streams: engine.decode_ms(n, 128, 256))  # type: ignore[misc]
        yield f"{runs.name} decode {streams} streams", value, "ms"
    yield f"{runs.name} 512 x (512 + 128)", median(repeats, lambda: engine.requests_per_s(512, 512, 128)), "requests/s"
    for length in runs.first_tokens:
        count = 3 if length > 10_000 else 9
        value = median(count, lambda n=length: engine.first_token_ms(engine.prompts(1, n)))  # type: ignore[misc]
        yield f"{runs.name} first token of {length}", value, "ms"
    for length in runs.cached_prefixes:
        prefix = engine.prompts(1, length)[0]
        engine.run([prefix], 1)
        value = median(9, lambda p=prefix: engine.first_token_ms([p + engine.prompts(1, 64)[0]]))  # type: ignore[misc]
        yield f"{runs.name} first token of 64 after {length} cached", value, "ms"
    for streams, context in runs.long_contexts:
        yield f"{runs.name} decode {streams} streams at {context}", engine.decode_ms(streams, context, 80), "ms"


def to_row(name: str, value: float, unit: str, peer: dict[str, float]) -> Row:
    """With the peer's value; a ratio above 1 is ahead of it."""
    theirs = peer.get(name)
    ratio = None if theirs is None else theirs / value if unit in LOWER_IS_BETTER else value / theirs
    return Row(name, round(value, 4), unit, theirs, None if ratio is None else round(ratio, 3))


def measure_all(options: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Everything, the quick things first."""
    if not options.workload or "attention" in options.workload:
        yield from measure_attention()
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        for runs in RUNS:
            if not options.workload or runs.name in options.workload:
                yield from measure_model(runs, Path(folder), options)
                _forget()


def _forget() -> None:
    """Frees a model's memory before the next one sizes its cache."""
    gc.unfreeze()
    gc.collect()
    torch.cuda.empty_cache()


def show(rows: Sequence[Row], peer_name: str) -> str:
    """A Markdown table."""
    lines = [f"| measured | Shoal | {peer_name} | ratio |", "|---|---:|---:|---:|"]
    for row in rows:
        peer = "-" if row.peer is None else f"{row.peer:,.4g}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.name} | {row.value:,.4g} {row.unit} | {peer} | {ratio} |")
    return "\n".join(lines)


def parse_options(description: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda"], required=True)
    parser.add_argument("--workload", action="append", choices=["attention", *(runs.name for runs in RUNS)])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each decoding and throughput row (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: 0)")
    parser.add_argument("--max-num-seqs", type=int, default=512, help="sequences in a step (default: 512)")
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=16384, help="tokens in a step (default: 16384, as the peer chose)"
    )
    parser.add_argument("--json", type=Path, help="write rows and their circumstances here")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table, writes the document and the table beside it."""
    peer: dict[str, Any] = json.loads((FOLDER / "peers" / "vllm_h100.json").read_text())
    of_peer = {row["name"]: row["value"] for row in peer["rows"]}
    start_s = time.perf_counter()
    rows: list[Row] = []
    for name, value, unit in measure_all(options):
        rows.append(to_row(name, value, unit, of_peer))
        print(f"  {name:50} {value:10.3f} {unit:10} {rows[-1].ratio or ''}", file=sys.stderr, flush=True)
        if options.json is not None:
            write_document(options, rows, peer, time.perf_counter() - start_s)
    print(show(rows, peer["peer"]))


def write_document(options: argparse.Namespace, rows: list[Row], peer: dict[str, Any], elapsed_s: float) -> None:
    """Everything measured so far: called after each row, so that a run cut short leaves what it has."""
    settings = {
        "dtype": "bfloat16",
        "weights": "random",
        "block_size": 64,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "gpu_memory_utilization": 0.85,
        "repeats": options.repeats,
    }
    gpu = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, Triton {triton.__version__}"
    details = {"gpu": gpu, "peer": peer["peer"], "peer_measured": peer["date"], "elapsed_s": round(elapsed_s)}
    write_results(options.json, rows, settings, benchmark="engine", **details)
    document = json.loads(options.json.read_text())
    heading = f"Measured on {document['date']} at commit {document['commit']}: {gpu}, PyTorch {torch.__version__}."
    options.json.with_suffix(".md").write_text(f"{heading}\n\n{show(rows, peer['peer'])}\n")
