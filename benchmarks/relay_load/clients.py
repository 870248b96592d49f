"""Clients that keep answers running, over gRPC or as server-sent events, and count what arrives."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from relay_load.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    Http2,
    frame,
    grpc_message,
    header_block,
)
from relay_load.prompts import PROMPT_LEN
from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2


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
