"""A worker of prepared frames: one single-token message a stream and step."""

from __future__ import annotations

import asyncio
from collections import deque

from relay_load.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2,
    frame,
    grpc_message,
    header_block,
)
from relay_load.prompts import PROMPT_LEN
from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2


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
