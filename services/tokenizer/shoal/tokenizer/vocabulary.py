"""The bytes of every token, so that a gateway can turn ids into text without a call.

Decoders of the `tokenizers` library work on whole sequences. Two families decompose into bytes per token, with at most
one leading space to drop: byte-level ones and SentencePiece-like ones. Others are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

from shoal.tokenizer.byte_alphabet import read_spelling
from shoal.tokenizer.errors import TokenizerError

_SUPPORTED: Final = "ByteLevel, or Replace, ByteFallback, Fuse and a final Strip of one leading space"
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SAMPLE_TEXTS: Final = (
    "  The quick brown fox,\n\tjumps over 12,345 lazy dogs.  ",
    "naïve café — “quotes” 日本語 العربية हिन्दी 👩‍👩‍👧‍👦",
    "def f(x):\n    return {'a': x ** 2}\r\n\r\n",
)
_NUM_SAMPLED_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes of every token id."""

    pieces: Sequence[bytes]
    """Empty for ids without text."""
    special_ids: Sequence[int]
    """Ascending; left out of text unless asked for."""
    strip_leading_space: bool
    """The text is the joined bytes as UTF-8 without one leading space, if it has one."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """What a gateway does with the pieces: the reference for `check`."""
        skipped = frozenset(self.special_ids) if skip_special_tokens else frozenset()
        text = b"".join(self.pieces[token_id] for token_id in ids if token_id not in skipped).decode(errors="replace")
        return text[1:] if self.strip_leading_space and text.startswith(" ") else text


def build_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of `tokenizer`, checked against its own decoder. Raises TokenizerError for other decoders."""
    to_bytes, strip = _read_decoder(tokenizer)
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(tokens.values()) + 1)
    for token, token_id in tokens.items():
        pieces[token_id] = to_bytes(token)
    added = tokenizer.get_added_tokens_decoder()
    special_ids = sorted(token_id for token_id, token in added.items() if token.special)
    vocabulary = Vocabulary(tuple(pieces), tuple(special_ids), strip)
    _check(vocabulary, tokenizer)
    return vocabulary


def _read_decoder(tokenizer: Tokenizer) -> tuple[Callable[[str], bytes], bool]:
    if tokenizer.decoder is None:
        raise TokenizerError(f"the tokenizer has no decoder; supported: {_SUPPORTED}")
    spec: dict[str, Any] = msgspec.json.decode(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return _byte_level, False
    replacements: list[tuple[str, str]] = []
    byte_fallback = strip = False
    for position, step in enumerate(steps):
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not byte_fallback:
                replacements.append((old, new))
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if names[position - 1 : position] == ["Fuse"]:
                strip = True
            case _:
                raise TokenizerError(
                    f"decoder {msgspec.json.encode(step).decode()} (of {', '.join(names)}) is not supported; "
                    f"supported: {_SUPPORTED}"
                )
    if "Fuse" not in names:
        raise TokenizerError(f"decoder {', '.join(names)}: without Fuse its text is not the joined tokens")
    return _SentencePiece(tuple(replacements), byte_fallback), strip


def _byte_level(token: str) -> bytes:
    spelled = read_spelling(token)
    return token.encode() if spelled is None else spelled


@dataclass(frozen=True, slots=True)
class _SentencePiece:
    replacements: tuple[tuple[str, str], ...]
    byte_fallback: bool

    def __call__(self, token: str) -> bytes:
        for old, new in self.replacements:
            token = token.replace(old, new)
        match = _BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
        return token.encode() if match is None else bytes([int(match[1], 16)])


def _check(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Joined pieces must be what the tokenizer decodes, for tokens alone and for whole texts."""
    size = len(vocabulary.pieces)
    step = max(1, size // _NUM_SAMPLED_TOKENS)
    sequences = [[token_id] for token_id in (*range(0, size, step), *vocabulary.special_ids)]
    sequences += [encoding.ids for encoding in tokenizer.encode_batch(list(_SAMPLE_TEXTS))]
    for skip in (False, True):
        expected = tokenizer.decode_batch(sequences, skip_special_tokens=skip)
        for ids, text in zip(sequences, expected, strict=True):
            got = vocabulary.decode(ids, skip_special_tokens=skip)
            if got != text:
                raise TokenizerError(f"the decoder is not a plain join: ids {ids[:20]} are {text!r}, joined {got!r}")
