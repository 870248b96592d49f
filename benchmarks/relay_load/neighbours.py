"""The tokenizer, and the calls of a worker other than Generate, in a process of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from relay_load.prompts import PROMPT_LEN, VOCAB_SIZE
from shoal.api.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from shoal.api.worker.v1 import worker_pb2, worker_pb2_grpc


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
