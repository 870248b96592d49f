"""The tokenizer service, seen from the gateway: its vocabulary once at start, one unary call a request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from shoal.api.chat.v1 import chat_pb2
from shoal.api.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from shoal.gateway.text.vocabulary import Vocabulary, vocabulary_of
from shoal.rpc.errors import ShoalError, Unavailable
from shoal.rpc.status import from_rpc_error

VOCABULARY_TIMEOUT_S: Final = 30.0
CALL_TIMEOUT_S: Final = 30.0
RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 2.0
_log = structlog.get_logger("shoal.gateway.tokenizer")


class Tokenizer:
    """Calls go through `channel`, which the caller owns. `learn` must have finished before texts can be made."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self._vocabulary: Vocabulary | None = None
        self._info = tokenizer_pb2.GetInfoResponse()

    @property
    def ready(self) -> bool:
        """Whether the vocabulary is here."""
        return self._vocabulary is not None

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._info.has_chat_template

    @property
    def vocabulary(self) -> Vocabulary:
        """Raises Unavailable until it is here."""
        if self._vocabulary is None:
            raise Unavailable("the tokenizer has not answered yet; try again in a moment")
        return self._vocabulary

    async def learn(self) -> None:
        """Fetches the vocabulary, trying again until the tokenizer answers."""
        pause_s = RETRY_FIRST_S
        while self._vocabulary is None:
            try:
                await self._fetch()
            except (grpc.RpcError, ValueError) as error:
                problem = from_rpc_error(error).message if isinstance(error, grpc.RpcError) else str(error)
                _log.info("no vocabulary yet", problem=problem, retry_s=pause_s)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, guards nothing
                pause_s = min(2 * pause_s, RETRY_MOST_S)

    async def encode(self, text: str, *, add_special_tokens: bool = True, timeout_s: float | None = None) -> list[int]:
        """Token ids of a plain text."""
        request = tokenizer_pb2.EncodeRequest(texts=[text], add_special_tokens=add_special_tokens)
        response = await self._call(self._stub.Encode, request, timeout_s)
        return list(response.sequences[0].ids)

    async def render(self, chat: chat_pb2.Chat, *, timeout_s: float | None = None) -> list[int]:
        """Token ids of a conversation."""
        response = await self._call(self._stub.RenderChat, tokenizer_pb2.RenderChatRequest(chat=chat), timeout_s)
        return list(response.token_ids)

    async def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, timeout_s: float | None = None
    ) -> str:
        """The text of token ids."""
        request = tokenizer_pb2.DecodeRequest(
            sequences=[tokenizer_pb2.TokenIds(ids=token_ids)], skip_special_tokens=skip_special_tokens
        )
        response = await self._call(self._stub.Decode, request, timeout_s)
        return str(response.texts[0])

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, timeout=min(timeout_s or CALL_TIMEOUT_S, CALL_TIMEOUT_S))
        except grpc.RpcError as error:
            raise _translated(error) from None

    async def _fetch(self) -> None:
        info = await self._stub.GetInfo(tokenizer_pb2.GetInfoRequest(), timeout=CALL_TIMEOUT_S)
        call = self._stub.GetVocabulary(tokenizer_pb2.GetVocabularyRequest(), timeout=VOCABULARY_TIMEOUT_S)
        messages = [message async for message in call]
        vocabulary = vocabulary_of(messages)
        if len(vocabulary) != info.vocab_size:
            raise ValueError(f"the vocabulary has {len(vocabulary)} ids, GetInfo says {info.vocab_size}")
        self._info, self._vocabulary = info, vocabulary
        _log.info("vocabulary", num_ids=len(vocabulary), digest=vocabulary.digest)


def _translated(error: grpc.RpcError) -> ShoalError:
    result = from_rpc_error(error)
    if isinstance(result, Unavailable):
        return Unavailable("the tokenizer cannot be reached right now; try again in a moment")
    return result
