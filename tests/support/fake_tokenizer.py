"""A tokenizer whose tokens are bytes: ids 0 to 255 are themselves, 256 is the special end-of-sequence token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from shoal.api.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from shoal.rpc.errors import InvalidArgument, ShoalError
from shoal.rpc.status import to_status

EOS = 256
VOCAB_SIZE = 258
_PIECES = [bytes([i]) for i in range(256)] + [b"<eos>", b"\xe2\x82\xac!"]  # 257 is a token of several characters


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Stateless but for what a test sets."""

    def __init__(self) -> None:
        self.error: ShoalError | None = None
        """What Encode and RenderChat answer."""
        self.chats: list[tokenizer_pb2.RenderChatRequest] = []
        self.unavailable_times = 0
        """How often GetInfo fails first."""

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Registers it."""
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(self, server)

    async def GetInfo(self, request: Any, context: Any) -> tokenizer_pb2.GetInfoResponse:
        if self.unavailable_times:
            self.unavailable_times -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        return tokenizer_pb2.GetInfoResponse(
            digest="t0", vocab_size=VOCAB_SIZE, eos_token_ids=[EOS], has_chat_template=True
        )

    async def Encode(self, request: tokenizer_pb2.EncodeRequest, context: Any) -> tokenizer_pb2.EncodeResponse:
        await self._maybe_fail(context)
        sequences = [tokenizer_pb2.TokenIds(ids=list(text.encode())) for text in request.texts]
        return tokenizer_pb2.EncodeResponse(sequences=sequences)

    async def Decode(self, request: tokenizer_pb2.DecodeRequest, context: Any) -> tokenizer_pb2.DecodeResponse:
        texts = []
        for sequence in request.sequences:
            if any(i >= VOCAB_SIZE for i in sequence.ids):
                error = InvalidArgument("token_ids", "outside the vocabulary")
                await context.abort_with_status(to_status(error))
            kept = [i for i in sequence.ids if not (request.skip_special_tokens and i == EOS)]
            texts.append(b"".join(_PIECES[i] for i in kept).decode(errors="replace"))
        return tokenizer_pb2.DecodeResponse(texts=texts)

    async def RenderChat(self, request: tokenizer_pb2.RenderChatRequest, context: Any) -> Any:
        await self._maybe_fail(context)
        self.chats.append(request)
        text = "".join(f"{m.role}:{m.content}\n" for m in request.chat.messages)
        return tokenizer_pb2.RenderChatResponse(token_ids=list(text.encode()))

    async def GetVocabulary(self, request: Any, context: Any) -> AsyncIterator[tokenizer_pb2.GetVocabularyResponse]:
        for first in range(0, VOCAB_SIZE, 100):
            pieces = _PIECES[first : first + 100]
            yield tokenizer_pb2.GetVocabularyResponse(
                first_id=first,
                pieces=pieces,
                special_ids=[EOS] if first <= EOS < first + 100 else [],
                join=tokenizer_pb2.PIECE_JOIN_CONCATENATE,
                digest="t0",
            )

    async def _maybe_fail(self, context: Any) -> None:
        if self.error is not None:
            await context.abort_with_status(to_status(self.error))
