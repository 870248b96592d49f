"""The tokenizer service, seen from the gateway: its vocabulary once at start, one unary call a request."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from shoal.api.chat.v1 import chat_pb2
from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from shoal.gateway.text.vocabulary import Vocabulary, vocabulary_of
from shoal.rpc.errors import ShoalError, Unavailable
from shoal.rpc.status import from_rpc_error

VOCABULARY_TIMEOUT_S: Final = 30.0
CALL_TIMEOUT_S: Final = 30.0
RETRY_FIRST_S: Final = 0.1
RETRY_MOST_S: Final = 2.0
_SERVICE: Final = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name
_BALANCING: Final = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": _SERVICE},
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {  # every call may be repeated
                "maxAttempts": 3,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_OPTIONS: Final = [
    ("grpc.service_config", json.dumps(_BALANCING)),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
]
_log = structlog.get_logger("shoal.gateway.tokenizer")


def open_tokenizer_channel(target: str) -> grpc.aio.Channel:
    """A channel to all tokenizers of a gRPC target; calls go to the healthy ones in turn.

    Not through Envoy: tokenizers are alike, so there is nothing to route by, and the two hops took 0.5 ms of every
    time to first token (two cores, one stream).
    """
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


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

    async def prompt_ids(self, request: gateway_pb2.GenerateRequest, *, timeout_s: float | None = None) -> list[int]:
        """Token ids of a request's prompt, whatever its form."""
        kind = request.WhichOneof("prompt")
        if kind == "tokens":
            return list(request.tokens.ids)
        if kind == "text":
            return await self.encode(request.text, timeout_s=timeout_s)
        return await self.render(request.chat, timeout_s=timeout_s)

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
