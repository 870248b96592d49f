"""Every routing policy on a trace in virtual time, at several sizes and loads: `results/replay.json` and `replay.md`.

    python benchmarks/replay_matrix.py --trace mooncake_conversation_trace.jsonl.gz --folder runs --results results

Each run is one `shoal bench replay --virtual`, whose document is kept in `--folder`; what is there already is not run
again, so that an interrupted matrix goes on, and one policy is measured anew by deleting its documents. All runs take
about an hour of one core; `--jobs` runs several at a time. Numbers depend on code, trace and settings alone.

A load is the rate of arrivals over the rate at which the same workers serve the whole trace handed over at once, under
`least_load`, which is therefore the first to run at each size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# PYTHONSAFEPATH keeps a script's folder off sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import write_results

SIZES = (8, 64)
LOADS = (0.8, 0.9)
POLICIES = ("shoal", "overlap_cost", "prefix_sticky", "least_load", "prefix_hash", "orca", "round_robin")
RIVALS = ("overlap_cost", "prefix_sticky")
FIRST = "least_load"
COLUMNS = ("policy", "hits", "of one cache", "TTFT mean", "p50", "p90", "E2E mean", "TPOT")


def path_of(folder: Path, size: int, load: float, policy: str) -> Path:
    """Of one run's document."""
    return folder / f"{size}-{load}-{policy}.json"


def run(args: argparse.Namespace, size: int, load: float, policy: str) -> None:
    """One run, unless its document is there."""
    path = path_of(args.folder, size, load, policy)
    if path.exists():
        return
    if load == LOADS[0] and policy == FIRST:
        rate = ["--load", str(load)]
    else:
        first = json.loads(path_of(args.folder, size, LOADS[0], FIRST).read_text())
        rate = ["--speedup", repr(first["settings"]["speedup"] * load / LOADS[0])]
    unfinished = path.with_suffix(".tmp")
    command = (
        *(sys.executable, "-c", "from shoal.client.cli import main; main()", "bench", "replay", "--virtual"),
        *("--trace", str(args.trace), "--workers", str(size), "--policies", policy, *rate, "--json", str(unfinished)),
    )
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    unfinished.rename(path)
    print(f"{size} workers, {load:.0%}, {policy}", flush=True)


def collect(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs of one size and load together, and what they say of the bars."""
    found = []
    for size in SIZES:
        for load in LOADS:
            documents = [json.loads(path_of(args.folder, size, load, policy).read_text()) for policy in POLICIES]
            policies: dict[str, Any] = {}
            for document in documents:
                policies |= document["policies"]
            oracle, ours = documents[0]["oracle"]["hit_ratio"], policies["shoal"]
            best = {name: min(policies[rival][name] for rival in RIVALS) for name in ("ttft_mean_s", "ttft_p90_s")}
            bars = {"hits_of_oracle": ours["hit_ratio"] / oracle}
            bars |= {f"{name.removesuffix('_s')}_vs_best": ours[name] / value for name, value in best.items()}
            speedup = documents[0]["settings"]["speedup"]
            about = {"workers": size, "load": load, "speedup": speedup, "oracle_hit_ratio": oracle, "bars": bars}
            found.append(about | {"policies": policies})
    return found


def table(one: dict[str, Any]) -> str:
    """A run's part of the page."""
    oracle, bars = one["oracle_hit_ratio"], one["bars"]
    lines = [
        f"## {one['workers']} workers, {one['load']:.0%} of saturation (trace {one['speedup']:.2f} times as fast)",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
    ]
    for policy, result in one["policies"].items():
        times = [f"{result[name]:.3f} s" for name in ("ttft_mean_s", "ttft_p50_s", "ttft_p90_s")]
        hits = [f"{result['hit_ratio']:.2%}", f"{result['hit_ratio'] / oracle:.1%}"]
        rest = [f"{result['e2e_mean_s']:.2f} s", f"{result['tpot_mean_s'] * 1e3:.1f} ms"]
        lines.append(f"| {' | '.join([f'`{policy}`', *hits, *times, *rest])} |")
    lines += [f"| one cache | {oracle:.2%} | 100% | | | | | |", ""]
    mean, p90 = bars["ttft_mean_vs_best"] - 1, bars["ttft_p90_vs_best"] - 1
    lines.append(f"`shoal` against the better of `prefix_sticky` and `overlap_cost`: mean {mean:+.1%}, p90 {p90:+.1%}.")
    return "\n".join(lines)


def page(runs: list[dict[str, Any]], document: dict[str, Any]) -> str:
    """The readable form of the results."""
    num_requests = runs[0]["policies"]["shoal"]["requests"]
    num_errors = sum(result["errors"] for one in runs for result in one["policies"].values())
    head = (
        f"Made by `benchmarks/replay_matrix.py` on {document['date']} at commit {document['commit']}: simulated H100s\n"
        f"(Llama-3.1-8B) in virtual time, {num_requests:,} requests, {num_errors} errors. Bounds are computed by\n"
        "`benchmarks/replay_bounds.py`; what limits hits and times is in ADR 0010.\n"
    )
    return "\n".join([head, *(table(one) + "\n" for one in runs)])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Every policy on a trace in virtual time.")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of the runs' documents")
    parser.add_argument("--results", type=Path, required=True, help="where replay.json and replay.md go")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        run(args, size, LOADS[0], FIRST)
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in [pool.submit(run, args, s, load, p) for s in SIZES for load in LOADS for p in POLICIES]:
            done.result()
    runs = collect(args)
    path = args.results / "replay.json"
    write_results(path, [], {"trace": args.trace.name}, runs=runs)
    (args.results / "replay.md").write_text(page(runs, json.loads(path.read_text())))


if __name__ == "__main__":
    main()
