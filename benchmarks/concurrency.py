"""Many streams at once through a whole mesh: errors, time to the first token, and what a request costs the gateway.

    python benchmarks/concurrency.py --model /models/SmolLM2-135M-Instruct.Q4_1.gguf --json concurrency.json

Starts what `shoal up` would: Envoy, a gateway, a tokenizer and workers on the simulated device, whose steps take
`--step-ms`. Then opens `--streams` streams at the same moment, each with a prompt of its own, and reads them to their
ends. Whatever is above what the workers run at once waits in the gateway. Everything, clients included, shares this
machine, so times are of a machine that is full; CPU seconds of the gateway are its own.

Rows by number of streams: `errors` (streams that ended otherwise than with all their tokens), `ttft_p50`, `ttft_p99`,
`gateway_cpu_per_request`, `gateway_cpu_per_message`, `wall`. `peer` of the CPU rows is the smallest number of
streams, `ratio` how many times cheaper that is: 1 is flat.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil

from shoal.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from shoal.api.generation.v1 import generation_pb2
from shoal.operator.api import InferenceService, parse_manifest
from shoal.operator.planner import LocalPlan, Observed, plan
from shoal.operator.substrate import LocalMesh

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results

NUM_CHANNELS = 4
STREAM_TIMEOUT_S = 300.0
MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: InferenceService
metadata: {{name: concurrency}}
spec:
  model: {{name: simulated, uri: {model}}}
  workers:
    device: simulated
    replicas: {replicas}
    threads: 1
    maxNumSeqs: {max_num_seqs}
    maxNumBatchedTokens: 2048
  gateway: {{replicas: {gateways}}}
  kvCache: {{memory: 256Mi}}
"""


@dataclass
class Outcome:
    """What became of some streams that were opened together."""

    ttfts_s: list[float]
    errors: Counter[str]
    num_messages: int = 0
    wall_s: float = 0.0
    gateway_cpu_s: float = 0.0


def make_service(args: argparse.Namespace) -> InferenceService:
    """What to run."""
    model = args.model.resolve()
    text = MANIFEST.format(
        model=model,
        replicas=args.replicas,
        max_num_seqs=args.max_num_seqs,
        gateways=args.gateways,
    )
    return parse_manifest(text, "concurrency")


def plan_slowly(service: InferenceService, observed: Observed, step_ms: float) -> LocalPlan:
    """The plan, with workers whose steps take a time: the manifest has no field for that."""
    real = plan(service, observed)
    flag = f"--simulated-step-ms={step_ms}"
    processes = [p if p.component != "worker" else dataclasses.replace(p, argv=(*p.argv, flag)) for p in real.processes]
    return dataclasses.replace(real, processes=tuple(processes))


def prompt_of(number: int, args: argparse.Namespace) -> list[int]:
    """Token ids; no two streams share their beginning."""
    return [(number * 7919 + position * 31) % 31_000 + 100 for position in range(args.prompt_len)]


async def read_stream(stub: Any, number: int, args: argparse.Namespace, outcome: Outcome) -> None:
    """One stream to its end, whichever that is."""
    ids = prompt_of(number, args)
    request = gateway_pb2.GenerateRequest(
        tokens=gateway_pb2.TokenPrompt(ids=ids),
        sampling=generation_pb2.SamplingParams(max_tokens=args.output_len, ignore_eos=True),
        output_format=gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS,
    )
    start_s = time.perf_counter()
    num_tokens = 0
    try:
        async for message in stub.Generate(request, timeout=STREAM_TIMEOUT_S):
            if not num_tokens:
                outcome.ttfts_s.append(time.perf_counter() - start_s)
            num_tokens += len(message.token_ids)
            outcome.num_messages += 1
    except grpc.aio.AioRpcError as error:
        outcome.errors[f"{error.code().name}: {error.details()}"] += 1
    else:
        if num_tokens != args.output_len:
            outcome.errors[f"{num_tokens} tokens"] += 1


async def read_sse(mesh: LocalMesh, number: int, args: argparse.Namespace, outcome: Outcome) -> None:
    """The same over the OpenAI API, with a connection of its own. Bare sockets: a client library would cost more."""
    ids = prompt_of(number, args)
    body = json.dumps({"prompt": ids, "max_tokens": args.output_len, "ignore_eos": True, "stream": True}).encode()
    lines = ["POST /v1/completions HTTP/1.1", "host: x", "content-type: application/json", "connection: close"]
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode()
    start_s = time.perf_counter()
    num_events, last = 0, b""
    host, _, port = mesh.endpoint.rpartition(":")
    try:
        async with asyncio.timeout(STREAM_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head + body)
            while line := await reader.readline():
                if line.startswith(b"data: "):
                    if not num_events:
                        outcome.ttfts_s.append(time.perf_counter() - start_s)
                    num_events += 1
                    outcome.num_messages += 1
                last = line.strip() or last
                if last == b"data: [DONE]":
                    break
            writer.close()
    except (OSError, TimeoutError) as error:
        outcome.errors[type(error).__name__] += 1
        return
    if last != b"data: [DONE]":
        outcome.errors[last[:200].decode(errors="replace")] += 1


async def run_streams(mesh: LocalMesh, num_streams: int, first: int, args: argparse.Namespace) -> Outcome:
    """All of them at once."""
    keepers = mesh.supervisor.keepers
    gateways = [
        psutil.Process(keeper.pid) for name, keeper in keepers.items() if name.startswith("gateway") and keeper.pid
    ]
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(mesh.endpoint, options=options) for _ in range(NUM_CHANNELS)]
    stubs: list[Any] = [gateway_pb2_grpc.GatewayServiceStub(channel) for channel in channels]
    outcome = Outcome([], Counter())
    before_s = sum(cpu_s(gateway) for gateway in gateways)
    start_s = time.perf_counter()
    numbers = range(first, first + num_streams)
    if args.http:
        await asyncio.gather(*(read_sse(mesh, number, args, outcome) for number in numbers))
    else:
        await asyncio.gather(*(read_stream(stubs[n % NUM_CHANNELS], n, args, outcome) for n in numbers))
    outcome.wall_s = time.perf_counter() - start_s
    outcome.gateway_cpu_s = sum(cpu_s(gateway) for gateway in gateways) - before_s
    for channel in channels:
        await channel.close(None)
    return outcome


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def to_rows(outcomes: dict[int, Outcome]) -> list[Row]:
    """See the module's docstring."""
    rows: list[Row] = []
    least = min(outcomes)
    for number, outcome in sorted(outcomes.items()):
        ttfts = sorted(outcome.ttfts_s) or [0.0]
        at_least = outcomes[least]
        costs = {
            "gateway_cpu_per_request": (outcome.gateway_cpu_s / number, at_least.gateway_cpu_s / least, "ms", 1e3),
            "gateway_cpu_per_message": (
                outcome.gateway_cpu_s / max(1, outcome.num_messages),
                at_least.gateway_cpu_s / max(1, at_least.num_messages),
                "us",
                1e6,
            ),
        }
        rows.append(Row(f"errors {number}", sum(outcome.errors.values()), "streams", None, None))
        rows.append(Row(f"ttft_p50 {number}", round(statistics.median(ttfts), 3), "s", None, None))
        rows.append(Row(f"ttft_p99 {number}", round(ttfts[int(len(ttfts) * 0.99)], 3), "s", None, None))
        for name, (value, peer, unit, scale) in costs.items():
            rows.append(
                Row(f"{name} {number}", round(value * scale, 3), unit, round(peer * scale, 3), round(peer / value, 3))
            )
        rows.append(Row(f"wall {number}", round(outcome.wall_s, 2), "s", None, None))
    return rows


async def measure(args: argparse.Namespace) -> list[Row]:
    """Starts the mesh, measures, stops it."""
    outcomes: dict[int, Outcome] = {}
    show = sys.stderr
    mesh = LocalMesh(
        make_service(args),
        on_event=lambda e: print(f"  {e.component} {e.state}", file=show),
        log_dir=args.log_dir,
        planner=lambda service, observed: plan_slowly(service, observed, args.step_ms),
    )
    async with mesh:
        first = 0
        await run_streams(mesh, 32, first, args)
        for number in args.streams:
            first += 10_000
            outcome = outcomes[number] = await run_streams(mesh, number, first, args)
            print(f"  {number} streams: {outcome.wall_s:.1f} s, errors {dict(outcome.errors) or 0}", file=show)
    return to_rows(outcomes)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Many streams at once through a whole mesh.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or folder; only its tokenizer is used")
    parser.add_argument("--streams", type=lambda s: [int(n) for n in s.split(",")], default=[100, 500, 2000])
    parser.add_argument("--replicas", type=int, default=4, help="workers")
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, default=64, help="of each worker")
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--http", action="store_true", help="OpenAI's API over a connection a stream, in place of gRPC")
    parser.add_argument("--log-dir", type=Path, help="keep the logs of the mesh here")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = asyncio.run(measure(args))
    for row in rows:
        print(f"{row.name:32} {row.value:10.3f} {row.unit:8} {row.ratio or ''}")
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "model", "log_dir")}
        write_results(args.json, rows, settings)


if __name__ == "__main__":
    main()
