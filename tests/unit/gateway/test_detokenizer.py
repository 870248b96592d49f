"""Detokenizer and vocabulary, on the real vocabulary of SmolLM2 and on made-up bytes."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import gguf
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from shoal.api.tokenizer.v1 import tokenizer_pb2
from shoal.gateway.text.detokenizer import Detokenizer
from shoal.gateway.text.vocabulary import Vocabulary, vocabulary_of
from support.model import smollm2_path

CONTROL = 3
VOCAB_SIZE = 49_152


@functools.cache
def reference() -> tuple[Any, Vocabulary]:
    """The decoder of `tokenizers` for SmolLM2, and the same vocabulary as bytes."""
    fields = gguf.GGUFReader(smollm2_path()).fields
    tokens, kinds = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    tokenizer = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    special = [i for i, kind in enumerate(kinds) if kind == CONTROL]
    tokenizer.add_special_tokens([tokens[i] for i in special])
    to_byte = {c: b for b, c in _byte_alphabet().items()}
    pieces = [
        t.encode() if kind == CONTROL else bytes(to_byte[c] for c in t) for t, kind in zip(tokens, kinds, strict=True)
    ]
    return tokenizer, Vocabulary(pieces, frozenset(special))


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def fragments() -> list[int]:
    """Tokens that are not text by themselves: they make up characters, or nonsense, together."""
    _, vocabulary = reference()
    return [i for i, p in enumerate(vocabulary.pieces) if p and not _is_text(p)]


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def decode_in_parts(vocabulary: Vocabulary, ids: list[int], cuts: list[int], *, special: bool) -> str:
    detokenizer = Detokenizer(vocabulary, include_special_tokens=special)
    places = sorted({0, len(ids), *(c % (len(ids) + 1) for c in cuts)})
    parts = [detokenizer.feed(ids[a:b]) for a, b in itertools.pairwise(places)]
    return "".join(parts) + detokenizer.flush()


@st.composite
def token_lists(draw: st.DrawFn) -> list[int]:
    fragment = st.sampled_from(fragments())
    return draw(
        st.lists(st.one_of(st.integers(0, VOCAB_SIZE - 1), fragment, fragment, st.integers(0, 16)), max_size=24)
    )


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_any_split_gives_what_tokenizers_gives_at_once(data: st.DataObject, special: bool) -> None:
    tokenizer, vocabulary = reference()
    ids = data.draw(token_lists())
    cuts = data.draw(st.lists(st.integers(0, 30), max_size=10))
    expected = tokenizer.decode(ids, skip_special_tokens=not special)
    assert decode_in_parts(vocabulary, ids, cuts, special=special) == expected


BYTES = Vocabulary([bytes([i]) for i in range(256)], frozenset())


@settings(deadline=None)
@given(st.binary(max_size=40), st.lists(st.integers(0, 50), max_size=10))
def test_any_bytes_are_read_as_utf8_with_replacement(data: bytes, cuts: list[int]) -> None:
    assert decode_in_parts(BYTES, list(data), cuts, special=False) == data.decode(errors="replace")


@settings(deadline=None)
@given(st.text(max_size=20))
def test_text_comes_as_soon_as_it_is_certain_and_never_by_halves(text: str) -> None:
    detokenizer = Detokenizer(BYTES)
    shown = ""
    for character in text:
        for byte in character.encode():
            shown += detokenizer.feed([byte])
            assert text.startswith(shown)
        assert shown.endswith(character)
    assert shown + detokenizer.flush() == text


def test_sentencepiece_drops_one_leading_space_of_the_whole() -> None:
    vocabulary = Vocabulary([b" ", b"  a", b" b"], frozenset(), strips_leading_space=True)
    detokenizer = Detokenizer(vocabulary)
    assert [detokenizer.feed([0]), detokenizer.feed([2]), detokenizer.feed([1])] == ["", " b", "  a"]


def test_an_id_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(IndexError):
        Detokenizer(BYTES).feed([256])


def message(first_id: int, pieces: list[bytes], **fields: Any) -> tokenizer_pb2.GetVocabularyResponse:
    values: dict[str, Any] = {"join": tokenizer_pb2.PIECE_JOIN_CONCATENATE, "digest": "d"} | fields
    return tokenizer_pb2.GetVocabularyResponse(first_id=first_id, pieces=pieces, **values)


def test_a_vocabulary_is_its_messages_in_a_row() -> None:
    vocabulary = vocabulary_of([message(0, [b"a", b"b"], special_ids=[1]), message(2, [b"c"])])
    assert list(vocabulary.pieces) == [b"a", b"b", b"c"]
    assert list(vocabulary.pieces_of(include_special_tokens=False)) == [b"a", b"", b"c"]
    assert (len(vocabulary), vocabulary.digest, vocabulary.strips_leading_space) == (3, "d", False)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([message(0, [b"a"]), message(2, [b"c"])], "gap"),
        ([message(0, [b"a"]), message(1, [b"c"], digest="e")], "different"),
        ([message(0, [b"a"], join=tokenizer_pb2.PIECE_JOIN_UNSPECIFIED)], "joins"),
        ([], "joins"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused(
    messages: list[tokenizer_pb2.GetVocabularyResponse], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        vocabulary_of(messages)
