"""Times each operation of one GPU by itself beside torch's, and tunes the constants of those that have some.

    python benchmarks/kernels_cuda.py [--group linear] [--json kernels.json]
    python benchmarks/kernels_cuda.py --tune linear [--configs kernels/shoal/kernels]

Every number is a median over replays of a CUDA graph. Weights and long inputs go through more than the second-level
cache holds. The share of the ceiling compares with what the script measures first: 4 GB read, 2 GB copied, a product of
8192 x 8192 bfloat16 matrices; where both bytes and arithmetic are needed, with the slower of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

# PYTHONSAFEPATH, which the Makefile sets, keeps a script's folder off sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from attention_cuda import measure_attention
from gpu_timing import Ceilings, measure_ceilings
from linear_tuning_cuda import tune_linear
from operations_cuda import Timing, measure_blocks, measure_elementwise, measure_linear
from rows import Row, write_results
from sampling_cuda import measure_sampling
from tuning_cuda import tune_attention, tune_sampling, write_document

GROUPS = {
    "linear": measure_linear,
    "elementwise": measure_elementwise,
    "blocks": measure_blocks,
    "sampling": measure_sampling,
}
TUNERS: dict[str, tuple[str, Callable[[float], Sequence[Any]]]] = {
    "linear": ("linear", tune_linear),
    "attention": ("paged_attention", tune_attention),
    "sampling": ("sampling", tune_sampling),
}
CONFIGS = Path(__file__).resolve().parent.parent / "kernels" / "shoal" / "kernels"


def measure_groups(groups: Sequence[str], ceilings: Ceilings) -> Iterator[Timing]:
    """Each group's operations."""
    for name, measure_group in GROUPS.items():
        if name in groups:
            yield from measure_group(ceilings)
            torch.cuda.empty_cache()


def measure_attention_rows(ceilings: Ceilings) -> Iterator[Row]:
    """Attention, which has no peer: `ratio` is the share of the ceiling."""
    limits = {"GB/s": ceilings.read_gb_per_s, "TFLOP/s": ceilings.tflop_per_s}
    for name, value, unit in itertools.islice(measure_attention(), 1, None):  # the first is the read ceiling
        yield Row(name, round(value, 3), unit, None, round(value / limits[unit], 3) if unit in limits else None)


def to_row(timing: Timing) -> Row:
    """Its time, torch's, and how many times faster it is."""
    ratio = None if timing.torch_microseconds is None else round(timing.torch_microseconds / timing.microseconds, 3)
    peer = None if timing.torch_microseconds is None else round(timing.torch_microseconds, 3)
    return Row(timing.name, round(timing.microseconds, 3), "us", peer, ratio)


def show(timing: Timing) -> str:
    """One line of the table."""
    peer = "" if timing.torch_microseconds is None else f"{timing.torch_microseconds:10.2f} us"
    ratio = "" if timing.torch_microseconds is None else f"{timing.torch_microseconds / timing.microseconds:6.2f}x"
    rate = f"{timing.rate:7.0f} {timing.unit:7} {timing.share:6.1%}"
    return f"{timing.name:60} {timing.microseconds:10.2f} us {rate:24} {peer:13} {ratio}"


def measure(options: argparse.Namespace) -> None:
    """Prints a line for each operation and writes the document."""
    ceilings = measure_ceilings()
    print(
        f"{torch.cuda.get_device_name()}: reads {ceilings.read_gb_per_s:.0f} GB/s, copies "
        f"{ceilings.copy_gb_per_s:.0f} GB/s, multiplies {ceilings.tflop_per_s:.0f} TFLOP/s\n"
        f"{'operation':60} {'ours':>13} {'rate':>14} {'ceiling':>9} {'torch':>13} {'faster':>7}"
    )
    timings, attention = [], []
    groups = options.group or [*GROUPS, "attention"]
    for timing in measure_groups(groups, ceilings):
        timings.append(timing)
        print(show(timing), flush=True)
    for row in measure_attention_rows(ceilings) if "attention" in groups else ():
        attention.append(row)
        share = "" if row.ratio is None else f"{row.ratio:6.1%}"
        print(f"{row.name:60} {row.value:10.1f} {row.unit:7} {share}", flush=True)
    if options.json is not None:
        write_results(
            options.json,
            [*(to_row(timing) for timing in timings), *attention],
            {"dtype": "bfloat16"},
            benchmark="kernels",
            gpu=torch.cuda.get_device_name(),
            ceilings={name: round(value, 1) for name, value in dataclasses.asdict(ceilings).items()},
            rates={x.name: [round(x.rate, 1), x.unit, round(x.share, 3)] for x in timings},
        )


def tune(options: argparse.Namespace) -> None:
    """Sweeps and writes one operation's document for this GPU."""
    op, tuner = TUNERS[options.tune]
    start_s = time.perf_counter()
    entries = tuner(start_s + options.budget_s)
    seconds = time.perf_counter() - start_s
    path = write_document(options.configs, op, entries, f"Models: {', '.join(x.stem for x in _models())}.")
    print(f"{len(entries)} entries in {seconds:.0f} s: {path}")
    print(path.read_text())


def _models() -> list[Path]:
    return sorted((Path(__file__).resolve().parent / "models").glob("*.json"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", choices=[*GROUPS, "attention"], help="default: all")
    parser.add_argument("--json", type=Path, help="write rows and their circumstances here")
    parser.add_argument("--tune", choices=list(TUNERS), help="instead of measuring, write the document of this GPU")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="where operations' documents are written below")
    parser.add_argument("--budget-s", type=float, default=140.0, help="nothing is begun after (default: 140)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device; kernels_cpu.py measures the operations of a CPU")
    torch.manual_seed(0)
    if options.tune is None:
        measure(options)
    else:
        tune(options)


if __name__ == "__main__":
    main()
