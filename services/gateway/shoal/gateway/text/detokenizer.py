"""Incremental detokenizer: token ids in, text out, never half a code point.

The text equals what decoding all ids at once gives, however they were split: bytes are concatenated and read as UTF-8,
and each maximal ill-formed part becomes one U+FFFD (Unicode 3.9, as Rust's `from_utf8_lossy` in `tokenizers` does).
SentencePiece's byte fallback in `tokenizers` differs in one case: it gives one U+FFFD a byte there.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterable, Sequence

from shoal.gateway.text.vocabulary import Vocabulary


class Detokenizer:
    """State of one completion: at most three bytes of an unfinished code point."""

    __slots__ = ("_at_start", "_pieces", "_tail")

    def __init__(self, vocabulary: Vocabulary, *, include_special_tokens: bool = False) -> None:
        self._pieces: Sequence[bytes] = vocabulary.pieces_of(include_special_tokens=include_special_tokens)
        self._tail = b""
        self._at_start = vocabulary.strips_leading_space

    def feed(self, token_ids: Iterable[int]) -> str:
        """The text that these ids complete. Raises IndexError for an id outside the vocabulary."""
        pieces = self._pieces
        data = self._tail + b"".join([pieces[i] for i in token_ids])
        text, consumed = utf_8_decode(data, "replace", False)
        self._tail = data[consumed:]
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """What an unfinished code point at the end becomes: U+FFFD, or nothing. Call once, last."""
        text, _ = utf_8_decode(self._tail, "replace", True)
        self._tail = b""
        return text
