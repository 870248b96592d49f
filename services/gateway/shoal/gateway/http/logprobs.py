"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from shoal.api.generation.v1 import generation_pb2
from shoal.gateway.text.vocabulary import Vocabulary

LEAST: Final = -9999.0
"""What OpenAI shows for a token that cannot come; JSON has no minus infinity."""


def chat_logprobs(positions: Iterable[generation_pb2.PositionLogprobs], vocabulary: Vocabulary) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    content = [
        _entry(position.token, vocabulary) | {"top_logprobs": [_entry(top, vocabulary) for top in position.top]}
        for position in positions
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    positions: Iterable[generation_pb2.PositionLogprobs], vocabulary: Vocabulary, offset: int
) -> dict[str, Any]:
    """`logprobs` of a legacy choice, and `end_offset`, where the next message's first token begins.

    Offsets are in characters, each token's bytes read by themselves.
    """
    tokens, values, tops, offsets = [], [], [], []
    for position in positions:
        text = _text(position.token.token_id, vocabulary)
        tokens.append(text)
        values.append(_finite(position.token.logprob))
        shown = {_text(top.token_id, vocabulary): _finite(top.logprob) for top in position.top}
        shown.setdefault(text, values[-1])
        tops.append(shown)
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
        "end_offset": offset,
    }


def _entry(token: generation_pb2.TokenLogprob, vocabulary: Vocabulary) -> dict[str, Any]:
    piece = vocabulary.pieces[token.token_id]
    return {"token": piece.decode(errors="replace"), "logprob": _finite(token.logprob), "bytes": list(piece)}


def _text(token_id: int, vocabulary: Vocabulary) -> str:
    return vocabulary.pieces[token_id].decode(errors="replace")


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST
