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
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import uvloop

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.api.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc

# PYTHONSAFEPATH, which the Makefile sets, keeps a script's folder off sys.path. Not the repository's root: its folders
# `operator` and `kernels` are named like modules of others.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rows import Row, write_results

BARS = {"token-ids": 20_000, "text": 15_000, "text-stops": None, "sse": 10_000}
VOCAB_SIZE = 49_152
PROMPT_LEN = 64
START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 300.0
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK = 1, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header_block(*fields: tuple[str, str]) -> bytes:
    """HPACK without indexing or Huffman codes (RFC 7541, section 6.2.2)."""
    return b"".join(b"\x00" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in fields)


def grpc_message(data: bytes) -> bytes:
    """A message with gRPC's length prefix."""
    return b"\x00" + len(data).to_bytes(4, "big") + data


class Http2(asyncio.Protocol):
    """Splits what arrives into frames and answers the housekeeping ones."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport
        self.window = 65_535
        self._buffer = b""
        self.open()

    def open(self) -> None:
        """Sends the first frames."""

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A frame that is not housekeeping."""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        buffer = self._buffer + data
        position, end = self.skip_preface(buffer), len(buffer)
        while end - position >= 9:
            size = int.from_bytes(buffer[position : position + 3], "big")
            if end - position < 9 + size:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            stream = int.from_bytes(buffer[position + 5 : position + 9], "big")
            payload = buffer[position + 9 : position + 9 + size]
            position += 9 + size
            if kind == SETTINGS and not flags & ACK:
                self.transport.write(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.transport.write(frame(PING, ACK, 0, payload))
            elif kind == WINDOW_UPDATE and not stream:
                self.window += int.from_bytes(payload, "big")
                self.on_frame(kind, flags, stream, payload)
            else:
                self.on_frame(kind, flags, stream, payload)
        self._buffer = buffer[position:]

    def skip_preface(self, buffer: bytes) -> int:
        """Where frames begin in `buffer`."""
        return 0


class Worker(Http2):
    """Answers each request with `num_tokens` single-token messages, one a step, like an engine."""

    def __init__(self, num_tokens: int, step_s: float) -> None:
        self._parts = _worker_frames(num_tokens)
        self._step_s = step_s
        self._running: dict[int, int] = {}
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._seen_preface = False

    def open(self) -> None:
        """See Http2."""
        self.transport.write(frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, (2**31 - 65_536).to_bytes(4, "big")))
        self._timer = asyncio.get_running_loop().call_later(self._step_s, self._step)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._timer.cancel()

    def skip_preface(self, buffer: bytes) -> int:
        """See Http2."""
        if self._seen_preface:
            return 0
        self._seen_preface = True
        return len(PREFACE)

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """See Http2."""
        if kind == DATA and flags & END_STREAM:
            self._running[stream] = 0
        elif kind == RST_STREAM:
            self._running.pop(stream, None)

    def _step(self) -> None:
        """Sends the next message of every stream, as far as flow control and the last step's backlog allow."""
        self._timer = asyncio.get_running_loop().call_later(self._step_s, self._step)
        if not self._waiting:
            for stream, position in list(self._running.items()):
                size, parts = self._parts[position]
                self._waiting.append((size, b"".join(h + stream.to_bytes(4, "big") + p for h, p in parts)))
                if position + 1 == len(self._parts):
                    del self._running[stream]
                else:
                    self._running[stream] = position + 1
        out = []
        while self._waiting and self.window >= self._waiting[0][0]:
            size, data = self._waiting.popleft()
            self.window -= size
            out.append(data)
        self.transport.write(b"".join(out))


def _worker_frames(num_tokens: int) -> list[tuple[int, list[tuple[bytes, bytes]]]]:
    """For each step, its bytes under flow control, and frames as (what precedes the stream id, what follows it)."""
    steps = []
    for index in range(num_tokens):
        message = worker_pb2.GenerateResponse(first_token_index=index, token_ids=[1000 + index])
        if index == 0:
            message.usage.prompt_tokens = PROMPT_LEN
        if index == num_tokens - 1:
            message.finish_reason = generation_pb2.FINISH_REASON_LENGTH
            message.usage.prompt_tokens, message.usage.completion_tokens = PROMPT_LEN, num_tokens
        frames = [(DATA, 0, grpc_message(message.SerializeToString()))]
        if index == 0:
            frames.insert(0, (HEADERS, 4, header_block((":status", "200"), ("content-type", "application/grpc"))))
        if index == num_tokens - 1:
            frames.append((HEADERS, 5, header_block(("grpc-status", "0"))))
        size = sum(len(p) for kind, _, p in frames if kind == DATA)
        steps.append((size, [(len(p).to_bytes(3, "big") + bytes([kind, flags]), p) for kind, flags, p in frames]))
    return steps


@dataclass
class Tally:
    """What clients counted."""

    target: int
    """Answers to finish."""
    messages: int = 0
    answers: int = 0
    errors: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def answered(self) -> None:
        """One more answer is complete."""
        self.answers += 1
        if self.answers >= self.target:
            self.done.set()


class GrpcClients(Http2):
    """Keeps a number of Generate calls running on one connection."""

    def __init__(self, request: bytes, num_streams: int, num_tokens: int, tally: Tally) -> None:
        self._request = request
        self._num_streams = num_streams
        self._num_tokens = num_tokens
        self._tally = tally
        self._next_stream = 1
        self._counts: dict[int, int] = {}
        self._rests: dict[int, bytes] = {}
        self._headers = header_block(
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/shoal.api.gateway.v1.GatewayService/Generate"),
            (":authority", "bench"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )

    def open(self) -> None:
        """See Http2."""
        window = (2**31 - 1).to_bytes(4, "big")
        settings = frame(SETTINGS, 0, 0, b"\x00\x04" + window)
        grow = frame(WINDOW_UPDATE, 0, 0, (2**31 - 65_536).to_bytes(4, "big"))
        self.transport.write(PREFACE + settings + grow)
        for _ in range(self._num_streams):
            self._call()

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """See Http2."""
        if kind == DATA:
            self._count(stream, payload)
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            if (count := self._counts.pop(stream, 0)) != self._num_tokens:
                self._tally.errors.append(f"an answer of {count} messages; last frame {payload!r}")
            self._rests.pop(stream, None)
            self._tally.answered()
            if not self._tally.done.is_set():
                self._call()

    def _call(self) -> None:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.transport.write(
            frame(HEADERS, 4, stream, self._headers) + frame(DATA, END_STREAM, stream, grpc_message(self._request))
        )

    def _count(self, stream: int, payload: bytes) -> None:
        data = self._rests.get(stream, b"") + payload
        position, count = 0, 0
        while len(data) - position >= 5:
            size = 5 + int.from_bytes(data[position + 1 : position + 5], "big")
            if len(data) - position < size:
                break
            position += size
            count += 1
        self._rests[stream] = data[position:]
        self._counts[stream] = self._counts.get(stream, 0) + count
        self._tally.messages += count


class SseClient(asyncio.Protocol):
    """One connection that streams one chat completion after the other."""

    def __init__(self, body: bytes, num_tokens: int, tally: Tally) -> None:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._num_tokens = num_tokens
        self._tally = tally
        self._tail = b""
        self._count = 0

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        joined = self._tail + data
        count = joined.count(b'"delta":{"content"') - self._tail.count(b'"delta":{"content"')
        self._count += count
        self._tally.messages += count
        self._tail = joined[-32:]
        if joined.endswith(b"0\r\n\r\n") and b"[DONE]" in joined[-64:]:
            if self._count != self._num_tokens:
                self._tally.errors.append(f"an answer of {self._count} chunks")
            self._count, self._tail = 0, b""
            self._tally.answered()
            if not self._tally.done.is_set():
                self._transport.write(self._request)
        elif b'"error"' in joined:
            self._tally.errors.append(joined[-300:].decode(errors="replace"))
            self._tally.done.set()


class Neighbours(worker_pb2_grpc.ModelWorkerServiceServicer, tokenizer_pb2_grpc.TokenizerServiceServicer):
    """The tokenizer and the worker's GetInfo; KV events of an empty cache, so that requests are pinned as usual."""

    async def GetInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Of whichever service asks."""
        if isinstance(request, worker_pb2.GetInfoRequest):
            return worker_pb2.GetInfoResponse(
                model="bench", block_size=16, max_model_len=8192, vocab_size=VOCAB_SIZE, epoch=1, kv_layout="bench"
            )
        return tokenizer_pb2.GetInfoResponse(vocab_size=VOCAB_SIZE, has_chat_template=True)

    async def SubscribeKvEvents(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An empty cache, in which nothing happens."""
        yield worker_pb2.SubscribeKvEventsResponse(epoch=1, snapshot=worker_pb2.KvSnapshot(complete=True))
        await asyncio.Event().wait()

    async def GetVocabulary(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Words of five to seven bytes."""
        for first in range(0, VOCAB_SIZE, 4096):
            pieces = [f" w{i}".encode() for i in range(first, first + 4096)]
            yield tokenizer_pb2.GetVocabularyResponse(
                first_id=first, pieces=pieces, join=tokenizer_pb2.PIECE_JOIN_CONCATENATE
            )

    async def RenderChat(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The same prompt always."""
        return tokenizer_pb2.RenderChatResponse(token_ids=range(PROMPT_LEN))


def serve_neighbours(ports: Any) -> None:
    """Runs in a process of its own; sends its port through the pipe."""

    async def serve() -> None:
        server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 5_000)])
        worker_pb2_grpc.add_ModelWorkerServiceServicer_to_server(Neighbours(), server)  # type: ignore[abstract]
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(Neighbours(), server)  # type: ignore[abstract]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ports.send(port)
        await server.wait_for_termination()

    asyncio.run(serve())


def request_of(scenario: str, num_tokens: int) -> bytes:
    """What clients send."""
    if scenario == "sse":
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": num_tokens}
        return json.dumps(body).encode()
    formats = gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS, gateway_pb2.OUTPUT_FORMAT_TEXT
    request = gateway_pb2.GenerateRequest(
        tokens=gateway_pb2.TokenPrompt(ids=range(PROMPT_LEN)),
        sampling=generation_pb2.SamplingParams(max_tokens=num_tokens),
        stop=["\n\nUser:", "###", "</answer>", " w9999999"] if scenario == "text-stops" else [],
        output_format=formats[scenario != "token-ids"],
    )
    return request.SerializeToString()


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
