"""Pieces joined are what the tokenizer decodes; decoders that do not decompose are refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE

from shoal.tokenizer.byte_alphabet import CHAR_OF_BYTE
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.gguf_tokenizer import build_definition
from shoal.tokenizer.vocabulary import build_vocabulary
from support.gguf_files import sentencepiece_keys
from support.texts import TEXTS


def make_byte_level() -> Tokenizer:
    vocab = {char: index for index, char in enumerate(CHAR_OF_BYTE)} | {"éa": 300, "Ġ日": 301}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("naïve")])
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


BYTE_LEVEL = make_byte_level()
BYTE_LEVEL_VOCABULARY = build_vocabulary(BYTE_LEVEL)
SENTENCEPIECE = build_definition(sentencepiece_keys()).tokenizer
SENTENCEPIECE_VOCABULARY = build_vocabulary(SENTENCEPIECE)


def test_byte_level_pieces() -> None:
    pieces = BYTE_LEVEL_VOCABULARY.pieces
    assert list(pieces[:256]) == [bytes([byte]) for byte in range(256)]
    assert pieces[256] == b"", "ids without a token have no bytes"
    assert pieces[300] == b"\xe9a", "é is a letter of the byte alphabet"
    assert pieces[301] == "Ġ日".encode(), "not a spelling, so its own text"
    ids = {token: id_of(BYTE_LEVEL, token) for token in ("<|end|>", "<tool call>")}
    assert {token: pieces[token_id] for token, token_id in ids.items()} == {t: t.encode() for t in ids}
    assert BYTE_LEVEL_VOCABULARY.special_ids == (ids["<|end|>"],)
    assert not BYTE_LEVEL_VOCABULARY.strip_leading_space


@given(st.lists(st.integers(0, len(BYTE_LEVEL_VOCABULARY.pieces) - 1), max_size=30), st.booleans())
def test_byte_level_join_is_decode_for_any_ids(ids: list[int], skip: bool) -> None:
    expected = BYTE_LEVEL.decode(ids, skip_special_tokens=skip)
    assert BYTE_LEVEL_VOCABULARY.decode(ids, skip_special_tokens=skip) == expected


def test_sentencepiece_pieces() -> None:
    pieces = SENTENCEPIECE_VOCABULARY.pieces
    assert pieces[3 + 0x41] == b"A"
    assert pieces[id_of(SENTENCEPIECE, "▁hello")] == b" hello"
    assert pieces[id_of(SENTENCEPIECE, "<tool>")] == b"<tool>"
    assert SENTENCEPIECE_VOCABULARY.special_ids == (0, 1, 2)
    assert SENTENCEPIECE_VOCABULARY.strip_leading_space


@given(st.text(max_size=30), st.sampled_from(TEXTS), st.booleans(), st.booleans())
def test_sentencepiece_join_is_decode_for_texts(text: str, more: str, special: bool, skip: bool) -> None:
    ids = SENTENCEPIECE.encode(text + more, add_special_tokens=special).ids
    expected = SENTENCEPIECE.decode(ids, skip_special_tokens=skip)
    assert SENTENCEPIECE_VOCABULARY.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (None, "no decoder"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Metaspace(), "Metaspace"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.CTC(), "CTC"),
        (decoders.Replace("▁", " "), "without Fuse"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]), "Strip"),
        (decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]), "Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip("_", 1, 0)]), "Strip"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]), "ByteLevel"),
    ],
)
def test_other_decoders_are_refused_by_name(decoder: decoders.Decoder | None, named: str) -> None:
    tokenizer = Tokenizer(BPE(vocab={"a": 0, "b": 1}, merges=[]))
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(TokenizerError, match=named):
        build_vocabulary(tokenizer)


def test_a_decoder_that_only_looks_plain_fails_the_check() -> None:
    tokenizer = Tokenizer(BPE(vocab={"a": 0, "▁▁": 1}, merges=[]))
    # After Fuse a replacement may cross tokens, which no join of pieces can do.
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("bc", "x")])
    tokenizer.add_tokens(["ab", "c"])
    vocabulary = build_vocabulary(tokenizer)
    assert vocabulary.decode([2, 3], skip_special_tokens=False) == "abc"
    assert tokenizer.decode([2, 3], skip_special_tokens=False) == "ax"
