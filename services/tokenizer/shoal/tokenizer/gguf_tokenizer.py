"""Builds a tokenizer from the metadata of a GGUF file.

Two kinds exist: `gpt2` (byte-level BPE with merges) and `llama` (SentencePiece BPE with scores and byte fallback).
Others are refused by name. Token ids equal those of `transformers` for the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from shoal.gguf import MetadataValue
from shoal.tokenizer.byte_alphabet import BYTE_OF_CHAR, spell_bytes
from shoal.tokenizer.definition import DEFAULT_TEMPLATE, TokenizerDefinition
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.pre_tokenizers import build_pre_tokenizer, find_pre_tokenization

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`."""
_SPACE: Final = "▁"
_END_OF_TURN: Final = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"})
"""Control tokens that end a turn in models whose file gives only the end of the text."""
_NAMED_TOKENS: Final = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_GEMMA: Final = frozenset({"gemma", "gemma2", "gemma3"})
_T = TypeVar("_T", int, str, bool)


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The tokenizer's keys, checked against each other."""

    metadata: Mapping[str, MetadataValue]
    tokens: list[str]
    token_types: list[int]
    """As long as `tokens`."""

    def find(self, key: str, kind: type[_T]) -> _T | None:
        """The value of `key`, or None when the file has none."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TokenizerError(f"{key}: expected {kind.__name__}, the file has {value!r:.80}")
        return value

    def find_id(self, key: str) -> int | None:
        """The token id under `key`, or None. Ids outside the vocabulary are refused."""
        token_id = self.find(key, int)
        if token_id is not None and not 0 <= token_id < len(self.tokens):
            raise TokenizerError(f"{key} = {token_id}: the vocabulary has {len(self.tokens)} tokens")
        return token_id

    def text_of(self, key: str) -> str | None:
        """The token whose id is under `key`."""
        token_id = self.find_id(key)
        return None if token_id is None else self.tokens[token_id]


def build_definition(metadata: Mapping[str, MetadataValue]) -> TokenizerDefinition:
    """The tokenizer that `metadata` describes. Raises TokenizerError naming the key that cannot be served."""
    vocabulary = _check(metadata)
    model = vocabulary.find("tokenizer.ggml.model", str)
    builders: dict[str | None, Callable[[GgufVocabulary], tuple[Tokenizer, bool]]] = {
        "gpt2": _build_byte_level,
        "llama": _build_sentencepiece,
    }
    if model not in builders:
        raise TokenizerError(
            f"tokenizer.ggml.model = {model!r} is not supported; known: {', '.join(map(str, builders))}"
        )
    tokenizer, add_bos_default = builders[model](vocabulary)
    _mark_added_tokens(tokenizer, vocabulary)
    _set_post_processor(tokenizer, vocabulary, add_bos_default)
    if tokenizer.get_vocab_size() != len(vocabulary.tokens):
        raise TokenizerError(
            f"tokenizer.ggml.tokens: {len(vocabulary.tokens)} tokens, of which only "
            f"{tokenizer.get_vocab_size()} differ from each other"
        )
    names = ((name, vocabulary.text_of(key)) for name, key in _NAMED_TOKENS.items())
    return TokenizerDefinition(
        tokenizer=tokenizer,
        bos_token_id=vocabulary.find_id("tokenizer.ggml.bos_token_id"),
        eos_token_ids=_find_eos_ids(vocabulary),
        chat_templates=_find_templates(vocabulary),
        named_tokens={name: text for name, text in names if text is not None},
    )


def _check(metadata: Mapping[str, MetadataValue]) -> GgufVocabulary:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise TokenizerError("the file has no tokenizer (tokenizer.ggml.tokens); use the model's tokenizer.json")
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise TokenizerError("tokenizer.ggml.token_type must have one entry a token")
    return GgufVocabulary(metadata, [str(token) for token in tokens], [int(kind) for kind in types])


def _build_byte_level(vocabulary: GgufVocabulary) -> tuple[Tokenizer, bool]:
    merges = vocabulary.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise TokenizerError("tokenizer.ggml.merges is missing, and a gpt2 tokenizer needs it")
    entry = find_pre_tokenization(vocabulary.find("tokenizer.ggml.pre", str) or "default")
    spelled = map(_spell, vocabulary.tokens, vocabulary.token_types)
    vocab = {token: token_id for token_id, token in enumerate(spelled)}
    pairs = _split_merges([str(merge) for merge in merges])
    tokenizer = Tokenizer(_build_bpe(vocab, pairs, ignore_merges=entry.ignore_merges))
    tokenizer.pre_tokenizer = build_pre_tokenizer(entry)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, entry.add_bos


def _spell(token: str, kind: int) -> str:
    """Added tokens stand for their own text. A normal one outside of the byte alphabet was written raw by mistake."""
    if kind in (CONTROL, USER_DEFINED) or BYTE_OF_CHAR.keys() >= set(token):
        return token
    return spell_bytes(token.encode())


def _build_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> BPE:
    try:
        return BPE(vocab=vocab, merges=merges, **options)
    except Exception as error:  # what the library raises: a bare Exception that names the token
        raise TokenizerError(f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from error


def _split_merges(merges: list[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, separator, right = merge.partition(" ")
        if not separator or not left or not right:
            raise TokenizerError(f"tokenizer.ggml.merges: {merge!r} is not two tokens")
        pairs.append((left, right))
    return pairs


def _build_sentencepiece(vocabulary: GgufVocabulary) -> tuple[Tokenizer, bool]:
    gemma = vocabulary.find("general.architecture", str) in _GEMMA
    # Gemma spells runs of spaces with spaces, and its scores do not follow the order of its merges; its ids do.
    tokens = [_SPACE * len(t) if gemma and t and not t.strip(" ") else t for t in vocabulary.tokens]
    ranks = list(range(len(tokens))) if gemma else _rank_by_score(vocabulary)
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    model = _build_bpe(
        vocab,
        derive_merges(tokens, vocabulary.token_types, ranks),
        unk_token=vocabulary.text_of("tokenizer.ggml.unknown_token_id"),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = vocabulary.find("tokenizer.ggml.add_space_prefix", bool)
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif prefix is False:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer, True


def _rank_by_score(vocabulary: GgufVocabulary) -> list[float]:
    scores = vocabulary.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise TokenizerError("tokenizer.ggml.scores must have one entry a token, and a llama tokenizer needs it")
    return [-float(score) for score in scores]


def derive_merges(tokens: list[str], token_types: list[int], ranks: list[float] | list[int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies, best first.

    SentencePiece always joins the adjacent pair whose joined piece scores best; so every split of a piece into two
    pieces is a merge, ranked by the piece (lowest `ranks` first), ties by the longer left half, then by id.
    """
    known = set(tokens)
    found: list[tuple[float, int, int, int, str, str]] = []
    for token_id, token in enumerate(tokens):
        if token_types[token_id] not in (NORMAL, USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in known and right in known:
                found.append((ranks[token_id], -cut, cut - len(token), token_id, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _mark_added_tokens(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    """Control tokens become special, user-defined ones stay whole; both are matched in a text before anything else."""
    special: list[AddedToken] = []
    plain: list[AddedToken] = []
    named = {vocabulary.find_id(key) for key in _NAMED_TOKENS.values()}
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.token_types, strict=True)):
        if not token or tokenizer.token_to_id(token) != token_id:
            continue  # spelled otherwise in the vocabulary: adding its text would make a second token
        if kind == CONTROL or token_id in named:
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _set_post_processor(tokenizer: Tokenizer, vocabulary: GgufVocabulary, add_bos_default: bool) -> None:
    add_bos = vocabulary.find("tokenizer.ggml.add_bos_token", bool)
    add_eos = vocabulary.find("tokenizer.ggml.add_eos_token", bool)
    wanted = [
        ("tokenizer.ggml.bos_token_id", add_bos_default if add_bos is None else add_bos),
        ("tokenizer.ggml.eos_token_id", bool(add_eos)),
    ]
    bos, eos = (vocabulary.text_of(key) if add else None for key, add in wanted)
    set_bos_eos(tokenizer, bos, eos)


def set_bos_eos(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Makes `tokenizer` put `bos` before and `eos` after a text when special tokens are asked for."""
    template = [part for part in (bos, "$A", eos) if part is not None]
    ids = [(token, tokenizer.token_to_id(token)) for token in sorted({*template} - {"$A"})]
    try:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, pair=[*template, "$B:1"], special_tokens=ids
        )
    except Exception as error:  # a token the template language cannot spell
        raise TokenizerError(f"cannot add {bos!r} and {eos!r} around texts: {error}") from error


def _find_eos_ids(vocabulary: GgufVocabulary) -> tuple[int, ...]:
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    ids = {token_id for key in keys if (token_id := vocabulary.find_id(key)) is not None}
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.token_types, strict=True)):
        if kind == CONTROL and token in _END_OF_TURN:
            ids.add(token_id)
    return tuple(sorted(ids))


def _find_templates(vocabulary: GgufVocabulary) -> dict[str, str]:
    key = "tokenizer.chat_template"
    templates: dict[str, str] = {}
    if (default := vocabulary.find(key, str)) is not None:
        templates[DEFAULT_TEMPLATE] = default
    names = vocabulary.metadata.get(f"{key}s", [])
    for name in names if isinstance(names, list) else []:
        if (template := vocabulary.find(f"{key}.{name}", str)) is not None:
            templates[str(name)] = template
    return templates
