"""Whether several gateways find as much in the caches as one: the same trace, sent live to meshes of both kinds.

    python benchmarks/gateway_replicas.py --model /models/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --trace mooncake_conversation_trace.jsonl.gz --json gateway-replicas.json

Starts what `shoal up` would: Envoy, gateways, a tokenizer and workers that take as long as H100s (Llama-3.1-8B) for
tokens that are made up. Envoy deals requests out to the gateways in turn, so that the next turn of a conversation
mostly reaches another gateway than the last one. One gateway and `--gateways` of them take turns for `--repeats`
rounds; each time the mesh is new and its caches are empty.

Rows: hit ratio (cached prompt tokens of all), mean and p90 TTFT with each number of gateways, medians of the rounds.
`peer` is one gateway; `ratio` above 1 is better than that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path

# PYTHONSAFEPATH keeps a script's folder off sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results
from shoal.operator.api import InferenceService, parse_manifest
from shoal.operator.substrate import LocalMesh

REPLAY_TIMEOUT_S = 1800.0
METRICS = {"hit_ratio": "", "ttft_mean_s": "s", "ttft_p90_s": "s"}
MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {{name: gateway-replicas}}
spec:
  model: {{name: simulated, uri: {model}}}
  workers:
    device: simulated
    replicas: {workers}
    threads: 1
    simulated: {{model: llama-3.1-8b-h100}}
  gateway: {{replicas: {gateways}}}
"""


def make_service(args: argparse.Namespace, num_gateways: int) -> InferenceService:
    """What to run."""
    text = MANIFEST.format(model=args.model.resolve(), workers=args.workers, gateways=num_gateways)
    return parse_manifest(text, "gateway-replicas")


async def replay(args: argparse.Namespace, num_gateways: int) -> dict[str, float]:
    """What `shoal bench replay` measures on a new mesh. Raises RuntimeError when requests failed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replay.json"
        async with LocalMesh(make_service(args, num_gateways)) as mesh:
            command = (
                *(sys.executable, "-c", "from shoal.client.cli import main; main()", "bench", "replay"),
                *("--trace", str(args.trace), "--endpoint", mesh.endpoint, "--json", str(path)),
                *("--limit", str(args.limit), "--speedup", str(args.speedup)),
            )
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            output, _ = await asyncio.wait_for(process.communicate(), REPLAY_TIMEOUT_S)
            status = process.returncode
        measured: dict[str, float] = json.loads(path.read_text())["policies"]["live"] if status == 0 else {}
    if measured.get("errors") != 0:
        raise RuntimeError(f"the replay with {num_gateways} gateways ended with {status}:\n{output.decode()}")
    return {name: measured[name] for name in METRICS}


async def measure(args: argparse.Namespace) -> tuple[list[Row], list[dict[str, object]]]:
    """Rows, and every round as it was."""
    rounds: list[dict[str, object]] = []
    seen: dict[tuple[int, str], list[float]] = {}
    for _ in range(args.repeats):
        for num_gateways in (1, args.gateways):
            measured = await replay(args, num_gateways)
            rounds.append({"gateways": num_gateways} | measured)
            print(rounds[-1], flush=True)
            for name, value in measured.items():
                seen.setdefault((num_gateways, name), []).append(value)
    rows = []
    for name, unit in METRICS.items():
        one = statistics.median(seen[1, name])
        several = statistics.median(seen[args.gateways, name])
        rows.append(Row(f"{name}, 1 gateway", one, unit, None, None))
        ratio = several / one if name == "hit_ratio" else one / several
        rows.append(Row(f"{name}, {args.gateways} gateways", several, unit, one, ratio))
    return rows, rounds


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Hit ratio of several gateways against one's.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or folder; only its tokenizer is used")
    parser.add_argument("--trace", type=Path, required=True, help="as for `shoal bench replay`")
    parser.add_argument("--limit", type=int, default=600, help="requests, from the trace's start")
    parser.add_argument("--speedup", type=float, default=1.35, help="80%% of what four workers serve")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows, rounds = asyncio.run(measure(args))
    for row in rows:
        print(f"{row.name:28} {row.value:8.4f} {row.unit:2} {row.ratio or ''}")
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "model", "trace")}
        write_results(args.json, rows, settings | {"trace": args.trace.name}, rounds=rounds)


if __name__ == "__main__":
    main()
