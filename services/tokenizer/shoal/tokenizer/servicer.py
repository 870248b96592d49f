"""TokenizerService: checks requests against the limits and translates between the wire and the tokenizer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import Counter

from shoal.api.tokenizer.v1 import tokenizer_pb2 as pb
from shoal.api.tokenizer.v1 import tokenizer_pb2_grpc
from shoal.rpc.errors import InvalidArgument, PayloadTooLarge
from shoal.tokenizer.chat import to_job
from shoal.tokenizer.definition import TokenizerDefinition
from shoal.tokenizer.encoding import TokenizerThreads
from shoal.tokenizer.rendering import Renderer
from shoal.tokenizer.vocabulary import Vocabulary

PIECES_PER_MESSAGE: Final = 8192
_TOKENS = Counter("shoal_tokenizer_tokens_total", "Token ids that went through.", ["direction"])


@dataclass(frozen=True, slots=True)
class TextLimits:
    """What one call may bring."""

    max_text_bytes: int
    max_batch_size: int


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """The RPCs. Stateless between calls."""

    def __init__(
        self,
        definition: TokenizerDefinition,
        vocabulary: Vocabulary,
        threads: TokenizerThreads,
        renderer: Renderer | None,
        limits: TextLimits,
    ) -> None:
        """`renderer` is None for a model without a chat template."""
        self._definition = definition
        self._threads = threads
        self._renderer = renderer
        self._limits = limits
        self._vocab_size = len(vocabulary.pieces)
        digest = definition.compute_digest()
        self._info = pb.GetInfoResponse(
            digest=digest,
            vocab_size=self._vocab_size,
            bos_token_id=definition.bos_token_id,
            eos_token_ids=definition.eos_token_ids,
            has_chat_template=renderer is not None,
            max_text_bytes=limits.max_text_bytes,
            max_batch_size=limits.max_batch_size,
        )
        self._vocabulary = list(_split(vocabulary, digest))

    async def GetInfo(self, request: pb.GetInfoRequest, context: Any) -> pb.GetInfoResponse:  # noqa: N802
        """See the proto."""
        return self._info

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:  # noqa: N802
        """See the proto."""
        self._check_batch("texts", len(request.texts))
        self._check_bytes("texts", sum(_utf8_bytes(text) for text in request.texts))
        sequences = await self._threads.encode(request.texts, add_special_tokens=request.add_special_tokens)
        _TOKENS.labels("encoded").inc(sum(map(len, sequences)))
        return pb.EncodeResponse(sequences=[pb.TokenIds(ids=ids) for ids in sequences])

    async def Decode(self, request: pb.DecodeRequest, context: Any) -> pb.DecodeResponse:  # noqa: N802
        """See the proto."""
        self._check_batch("sequences", len(request.sequences))
        num_ids = sum(len(sequence.ids) for sequence in request.sequences)
        if num_ids > self._limits.max_text_bytes:
            raise PayloadTooLarge("sequences", f"{num_ids} ids in all; at most {self._limits.max_text_bytes} a call")
        for index, sequence in enumerate(request.sequences):
            if sequence.ids and max(sequence.ids) >= self._vocab_size:
                position = next(i for i, token_id in enumerate(sequence.ids) if token_id >= self._vocab_size)
                raise InvalidArgument(
                    f"sequences[{index}].ids[{position}]",
                    f"{sequence.ids[position]} is no token id; the vocabulary has 0 to {self._vocab_size - 1}",
                )
        ids: list[Sequence[int]] = [sequence.ids for sequence in request.sequences]
        texts = await self._threads.decode(ids, skip_special_tokens=request.skip_special_tokens)
        _TOKENS.labels("decoded").inc(num_ids)
        return pb.DecodeResponse(texts=texts)

    async def RenderChat(self, request: pb.RenderChatRequest, context: Any) -> pb.RenderChatResponse:  # noqa: N802
        """See the proto."""
        template = self._definition.template_for(has_tools=bool(request.chat.tools))
        if self._renderer is None or template is None:
            raise InvalidArgument("chat", "the model has no chat template; send a plain prompt instead")
        self._check_bytes("chat", request.chat.ByteSize())
        text = await self._renderer.render(to_job(request.chat, template))
        self._check_bytes("chat", _utf8_bytes(text))
        # The template writes the special tokens that a plain text would get around it.
        (ids,) = await self._threads.encode([text], add_special_tokens=False)
        _TOKENS.labels("encoded").inc(len(ids))
        return pb.RenderChatResponse(token_ids=ids, text=text if request.return_text else "")

    async def GetVocabulary(  # noqa: N802
        self, request: pb.GetVocabularyRequest, context: Any
    ) -> AsyncIterator[pb.GetVocabularyResponse]:
        """See the proto."""
        for message in self._vocabulary:
            yield message

    def _check_batch(self, field: str, size: int) -> None:
        if not 1 <= size <= self._limits.max_batch_size:
            raise InvalidArgument(field, f"{size} given; give 1 to {self._limits.max_batch_size}")

    def _check_bytes(self, field: str, num_bytes: int) -> None:
        if num_bytes > self._limits.max_text_bytes:
            raise PayloadTooLarge(field, f"{num_bytes} bytes in all; at most {self._limits.max_text_bytes} a call")


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _split(vocabulary: Vocabulary, digest: str) -> Iterator[pb.GetVocabularyResponse]:
    join = (
        pb.PIECE_JOIN_CONCATENATE_STRIP_LEADING_SPACE if vocabulary.strip_leading_space else pb.PIECE_JOIN_CONCATENATE
    )
    for first_id in range(0, len(vocabulary.pieces), PIECES_PER_MESSAGE):
        pieces = vocabulary.pieces[first_id : first_id + PIECES_PER_MESSAGE]
        special_ids = [token_id for token_id in vocabulary.special_ids if 0 <= token_id - first_id < len(pieces)]
        yield pb.GetVocabularyResponse(
            first_id=first_id, pieces=pieces, special_ids=special_ids, join=join, digest=digest
        )
