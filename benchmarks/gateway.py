"""How many streamed messages one gateway process relays on one core.

    python benchmarks/gateway.py --json gateway.json

The gateway runs as in production (`python -m shoal.gateway.main`), pinned to the first core. On the other core, this
process plays both its neighbours: a worker that sends one single-token message a stream and step, and clients that keep
`--streams` answers running. Both write prepared HTTP/2 frames instead of using a gRPC library, which would be slower
than what it measures. A small process of its own serves the tokenizer and the worker's GetInfo, which the relayed
streams never touch.

- token-ids: gRPC, OUTPUT_FORMAT_TOKEN_IDS: the worker's bytes pass through.
- text: gRPC, OUTPUT_FORMAT_TEXT: detokenized.
- text-stops: the same with four stop strings that never match.
- sse: POST /v1/chat/completions, streamed.

`messages_per_s` is what came through while the load was above what the gateway can do; `messages_per_cpu_s` divides by
the CPU seconds the gateway used instead, which other processes on its core disturb less. Medians over the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import uvloop

# PYTHONSAFEPATH, which the Makefile sets, keeps a script's folder off sys.path. Not the repository's root: its folders
# `operator` and `kernels` are named like modules of others.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from relay_load.clients import GrpcClients, SseClient, Tally, request_of
from relay_load.neighbours import serve_neighbours
from relay_load.worker import Worker
from rows import Row, write_results

BARS = {"token-ids": 20_000, "text": 15_000, "text-stops": None, "sse": 10_000}
START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 300.0


def free_port() -> int:
    """A port nobody has right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class GatewayProcess:
    """The gateway, pinned to one core."""

    def __init__(self, core: int | None, mesh_port: int, neighbours_port: int, folder: str) -> None:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": neighbours_port}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        workers = Path(folder, "workers.json")
        workers.write_text(json.dumps({"resources": [{"cluster_name": "worker", "endpoints": endpoints}]}))
        self.port, self.http_port = free_port(), free_port()
        flags = {
            "mesh-address": f"127.0.0.1:{mesh_port}",
            "tokenizer-address": f"127.0.0.1:{neighbours_port}",
            "workers-file": str(workers),
            "port": self.port,
            "http-port": self.http_port,
            "metrics-port": 0,
            "log-level": "warning",
        }
        command = [sys.executable, "-m", "shoal.gateway.main", *(f"--{k}={v}" for k, v in flags.items())]
        self.process = subprocess.Popen(command)
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})  # before it has threads: they inherit it
        self._stats = psutil.Process(self.process.pid)

    def cpu_s(self) -> float:
        """CPU seconds used so far."""
        times = self._stats.cpu_times()
        return float(times.user + times.system)

    async def until_ready(self) -> None:
        """Waits for health."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        async with asyncio.timeout(START_TIMEOUT_S):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
                check: Any = health_pb2_grpc.HealthStub(channel).Check
                while True:
                    answer = await check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    await asyncio.sleep(0.05)


async def run(
    scenario: str, gateway: GatewayProcess, options: argparse.Namespace, num_answers: int
) -> dict[str, float]:
    """One repeat."""
    loop = asyncio.get_running_loop()
    tally = Tally(num_answers)
    request, num_tokens = request_of(scenario, options.tokens), options.tokens
    cpu_s, started_s = gateway.cpu_s(), time.perf_counter()
    transports = []
    if scenario == "sse":
        for _ in range(options.streams):
            make_sse = functools.partial(SseClient, request, num_tokens, tally)
            transports.append((await loop.create_connection(make_sse, "127.0.0.1", gateway.http_port))[0])
    else:
        make_grpc = functools.partial(GrpcClients, request, options.streams, num_tokens, tally)
        transports.append((await loop.create_connection(make_grpc, "127.0.0.1", gateway.port))[0])
    async with asyncio.timeout(RUN_TIMEOUT_S):
        await tally.done.wait()
    elapsed_s, cpu_s = time.perf_counter() - started_s, gateway.cpu_s() - cpu_s
    for transport in transports:
        transport.abort()
    if tally.errors:
        raise RuntimeError(f"{scenario}: {len(tally.errors)} wrong answers, the first: {tally.errors[0]}")
    if not cpu_s:
        raise RuntimeError(f"{scenario}: too short to measure CPU seconds; ask for more --messages")
    return {
        "messages_per_s": tally.messages / elapsed_s,
        "messages_per_cpu_s": tally.messages / cpu_s,
        "cpu_us_per_message": 1e6 * cpu_s / tally.messages,
        "utilization": cpu_s / elapsed_s,
    }


async def measure(options: argparse.Namespace, neighbours_port: int) -> dict[str, Any]:
    """All scenarios, taking turns."""
    loop = asyncio.get_running_loop()
    step_s = options.streams / options.offered
    mesh = await loop.create_server(lambda: Worker(options.tokens, step_s), "127.0.0.1", 0)
    mesh_port = mesh.sockets[0].getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    core = cores[0] if len(cores) > 1 else None
    if core is not None:
        os.sched_setaffinity(0, set(cores[1:]))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.scenario}
    with tempfile.TemporaryDirectory() as folder:
        gateway = GatewayProcess(core, mesh_port, neighbours_port, folder)
        try:
            await gateway.until_ready()
            num_answers = max(options.streams, options.messages // options.tokens)
            for scenario in results:
                await run(scenario, gateway, options, options.streams * 2)  # warm
            for _ in range(options.repeats):
                for scenario, values in results.items():
                    values.append(await run(scenario, gateway, options, num_answers))
        finally:
            gateway.process.kill()
            gateway.process.wait(30)
    return {
        name: {key: statistics.median(v[key] for v in values) for key in values[0]} | {"bar": BARS[name]}
        for name, values in results.items()
    }


def to_rows(results: dict[str, dict[str, Any]]) -> list[Row]:
    """Both rates of each scenario; nothing is compared."""
    units = {"messages_per_s": "messages/s", "messages_per_cpu_s": "messages/CPU s"}
    return [
        Row(f"{scenario}_{key}", result[key], unit, None, None)
        for scenario, result in results.items()
        for key, unit in units.items()
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64, help="answers running at once (default: 64)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens, and messages, of an answer (default: 64)")
    parser.add_argument("--messages", type=int, default=200_000, help="messages of a repeat (default: 200000)")
    parser.add_argument("--offered", type=float, default=80_000, help="most messages/s the worker sends")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scenario", action="append", choices=list(BARS), help="default: all")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    options.scenario = options.scenario or list(BARS)
    here, there = multiprocessing.get_context("spawn").Pipe()
    neighbours = multiprocessing.get_context("spawn").Process(target=serve_neighbours, args=(there,), daemon=True)
    neighbours.start()
    results = uvloop.run(measure(options, here.recv()))
    neighbours.terminate()
    for name, row in results.items():
        bar = f"(bar {row['bar']:,})" if row["bar"] else ""
        print(
            f"{name:12} {row['messages_per_s']:9,.0f} messages/s  {row['messages_per_cpu_s']:9,.0f} per CPU second  "
            f"{row['cpu_us_per_message']:6.1f} us each  utilization {row['utilization']:.2f}  {bar}"
        )
    if options.json:
        settings = {k: getattr(options, k) for k in ("streams", "tokens", "messages", "offered", "repeats")}
        machine = {"machine": platform.machine(), "python": platform.python_version(), "cores": os.cpu_count()}
        write_results(options.json, to_rows(results), settings, benchmark="gateway", results=results, on=machine)


if __name__ == "__main__":
    main()
