"""What the mesh adds to a worker: both Envoy listeners, the gateway and the tokenizer, against the worker alone.

    python benchmarks/mesh.py --json mesh.json

Starts one worker with everything before it, then measures pairs of runs in alternating order (mesh, direct, direct,
mesh, ...), so that whatever else the machine does hits both alike. Both sides use raw gRPC stubs and the same reading
loop, in this process; the mesh gets text and answers with text, the worker gets the same prompt's token ids, which were
made before the clock starts.

- TTFT, one stream on an idle mesh: time to the first message with a token. Warm: the prompt is in the prefix cache, so
  little but the way remains. Cold: each prompt is unique from its first token on, with an equal number of tokens.
- Throughput, `--streams` at once: output tokens a second over each repeat, from the first request sent to the last
  token. Prompts are unique.

Values are medians over the samples (TTFT) or repeats (throughput). The bars: TTFT p50 at most 5 ms above the worker's,
and at least 95% of its tokens a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec

from shoal.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc
from shoal.operator.api import InferenceService, load_manifest
from shoal.operator.substrate import LocalMesh

# PYTHONSAFEPATH, which the Makefile sets, keeps a script's folder off sys.path. Not the repository's root: its folders
# `operator` and `kernels` are named like modules of others.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from pairs import order_of_pair
from rows import Row, write_results

ROOT = Path(__file__).resolve().parents[1]
MAX_TTFT_OVERHEAD_MS = 5.0
MIN_THROUGHPUT_RATIO = 0.95
CALL_TIMEOUT_S = 300.0
_TEXT = "The tide comes in twice a day because the moon pulls at the sea, and the sea follows it around the earth. "


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished stream."""

    start_s: float
    first_token_s: float
    last_token_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt in both forms."""

    text: str
    token_ids: list[int]


Ask = Callable[[Prompt, int], Awaitable[Sample]]
"""Sends a prompt and a number of tokens to generate."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The two ways to the worker."""

    mesh: Ask
    direct: Ask
    tokenize: Callable[[str], Awaitable[list[int]]]


@asynccontextmanager
async def open_paths(mesh: LocalMesh, model: str) -> AsyncIterator[Paths]:
    """Stubs for the mesh's edge and for its worker."""
    worker = next(process for process in mesh.plan.processes if process.component == "worker")
    options = [("grpc.enable_http_proxy", 0)]
    async with (
        grpc.aio.insecure_channel(mesh.endpoint, options=options) as edge,
        grpc.aio.insecure_channel(f"127.0.0.1:{worker.ports['grpc']}", options=options) as direct,
    ):
        gateway: Any = gateway_pb2_grpc.GatewayServiceStub(edge)  # the stubs' async types vary with grpc-stubs
        engine: Any = worker_pb2_grpc.ModelWorkerServiceStub(direct)
        request_ids = (f"bench-{i}" for i in itertools.count())

        async def ask_mesh(prompt: Prompt, num_tokens: int) -> Sample:
            request = gateway_pb2.GenerateRequest(
                model=model,
                text=prompt.text,
                sampling=_sampling(num_tokens),
                output_format=gateway_pb2.OUTPUT_FORMAT_TEXT_AND_TOKEN_IDS,
            )
            return await _read(lambda: gateway.Generate(request, timeout=CALL_TIMEOUT_S), num_tokens)

        async def tokenize(text: str) -> list[int]:
            request = gateway_pb2.TokenizeRequest(model=model, text=text)
            return list((await gateway.Tokenize(request, timeout=CALL_TIMEOUT_S)).token_ids)

        async def ask_direct(prompt: Prompt, num_tokens: int) -> Sample:
            request = worker_pb2.GenerateRequest(
                request_id=next(request_ids), token_ids=prompt.token_ids, sampling=_sampling(num_tokens)
            )
            return await _read(lambda: engine.Generate(request, timeout=CALL_TIMEOUT_S), num_tokens)

        yield Paths(ask_mesh, ask_direct, tokenize)


def _sampling(num_tokens: int) -> generation_pb2.SamplingParams:
    return generation_pb2.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


async def _read(open_call: Callable[[], Any], num_tokens: int) -> Sample:
    """Reads a stream to its end. Raises RuntimeError when it is short."""
    start_s = time.perf_counter()
    call = open_call()
    first_token_s = last_token_s = 0.0
    received = 0
    while (message := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]  # missing from the stubs
        if message.token_ids:
            last_token_s = time.perf_counter()
            first_token_s = first_token_s or last_token_s
            received += len(message.token_ids)
    if received != num_tokens:
        raise RuntimeError(f"{received} tokens arrived instead of {num_tokens}")
    return Sample(start_s, first_token_s, last_token_s, received)


class Prompts:
    """Prompts of equal length in tokens whose first block of tokens never repeats."""

    def __init__(self, paths: Paths, repetitions: int) -> None:
        self._tokenize = paths.tokenize
        self._numbers = itertools.count(100_000)
        self._body = _TEXT * repetitions

    async def fresh(self) -> Prompt:
        """One that no cache has seen."""
        text = f"{next(self._numbers)} {self._body}"
        return Prompt(text, await self._tokenize(text))


async def measure_ttft(paths: Paths, prompts: Prompts, samples: int, *, warm: bool) -> tuple[float, float]:
    """Median TTFT in ms of the mesh and of the worker."""
    fixed = await prompts.fresh()
    await paths.mesh(fixed, 2)
    await paths.direct(fixed, 2)
    times_ms: dict[str, list[float]] = {"mesh": [], "direct": []}
    for name in _alternating(samples):
        ask: Ask = getattr(paths, name)
        sample = await ask(fixed if warm else await prompts.fresh(), 2)
        times_ms[name].append((sample.first_token_s - sample.start_s) * 1e3)
    return statistics.median(times_ms["mesh"]), statistics.median(times_ms["direct"])


async def measure_throughput(paths: Paths, prompts: Prompts, options: argparse.Namespace) -> tuple[float, float]:
    """Median output tokens a second of the mesh and of the worker, over the repeats."""
    rates: dict[str, list[float]] = {"mesh": [], "direct": []}
    for name in _alternating(options.repeats):
        ask: Ask = getattr(paths, name)
        batch = [await prompts.fresh() for _ in range(options.streams)]
        samples = await asyncio.gather(*(ask(prompt, options.output_len) for prompt in batch))
        span_s = max(s.last_token_s for s in samples) - min(s.start_s for s in samples)
        rates[name].append(sum(s.num_tokens for s in samples) / span_s)
        print(f"  {name:6} {rates[name][-1]:8.1f} tokens/s", file=sys.stderr)
    return statistics.median(rates["mesh"]), statistics.median(rates["direct"])


def _alternating(pairs: int) -> list[str]:
    """mesh, direct, direct, mesh, mesh, direct, ..."""
    return [name for i in range(pairs) for name in order_of_pair(("mesh", "direct"), i)]


async def measure(options: argparse.Namespace) -> list[Row]:
    """Starts the mesh, measures, stops it."""
    service = _with_free_port(load_manifest(options.manifest))
    async with (
        LocalMesh(service, on_event=lambda event: print(f"  {event.component} {event.state}", file=sys.stderr)) as mesh,
        open_paths(mesh, service.spec.model.name) as paths,
    ):
        prompts = Prompts(paths, options.prompt_repetitions)
        warm = await measure_ttft(paths, prompts, options.samples, warm=True)
        cold = await measure_ttft(paths, prompts, options.samples // 2, warm=False)
        rate = await measure_throughput(paths, prompts, options)
    return [
        Row("ttft_p50_warm", warm[0], "ms", warm[1], warm[0] / warm[1]),
        Row("ttft_p50_warm_overhead", warm[0] - warm[1], "ms", None, None),
        Row("ttft_p50_cold", cold[0], "ms", cold[1], cold[0] / cold[1]),
        Row("ttft_p50_cold_overhead", cold[0] - cold[1], "ms", None, None),
        Row(f"output_tokens_per_s_{options.streams}_streams", rate[0], "tokens/s", rate[1], rate[0] / rate[1]),
    ]


def _with_free_port(service: InferenceService) -> InferenceService:
    gateway = msgspec.structs.replace(service.spec.gateway, port=0)
    return msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, gateway=gateway))


def show(rows: list[Row]) -> bool:
    """Prints the rows and the bars; True if both bars are met."""
    for row in rows:
        peer = "" if row.peer is None else f"  worker {row.peer:9.2f}  ratio {row.ratio:.3f}"
        print(f"{row.name:34} {row.value:9.2f} {row.unit:9}{peer}")
    overhead_ms = next(row.value for row in rows if row.name == "ttft_p50_warm_overhead")
    ratio = rows[-1].ratio or 0.0
    met = overhead_ms <= MAX_TTFT_OVERHEAD_MS and ratio >= MIN_THROUGHPUT_RATIO
    print(f"bars: TTFT overhead {overhead_ms:.2f} ms (at most {MAX_TTFT_OVERHEAD_MS:g}), "
          f"throughput {ratio:.1%} (at least {MIN_THROUGHPUT_RATIO:.0%}): {'met' if met else 'MISSED'}")  # fmt: skip
    return met


def main() -> int:
    """Exit code 0; with --check, 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=ROOT / "examples/smollm2-135m.yaml")
    parser.add_argument("--samples", type=int, default=50, help="pairs of TTFT samples (default: 50)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of throughput runs (default: 5)")
    parser.add_argument("--streams", type=int, default=16, help="streams at once (default: 16)")
    parser.add_argument("--output-len", type=int, default=64, help="tokens of each stream (default: 64)")
    parser.add_argument("--prompt-repetitions", type=int, default=2, help="sentences of a prompt (default: 2)")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    rows = asyncio.run(measure(options))
    met = show(rows)
    if options.json is not None:
        settings = {key: str(value) for key, value in vars(options).items() if key not in ("json", "check")}
        settings["manifest"] = options.manifest.name  # no path of the machine
        write_results(options.json, rows, settings, benchmark="mesh")
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
