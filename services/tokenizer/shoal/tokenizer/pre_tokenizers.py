"""How byte-level vocabularies of GGUF files cut text before merging, by `tokenizer.ggml.pre`.

A GGUF file names its pre-tokenizer and does not define it; a wrong one gives other token ids for the same text, without
any error, so names that are not in this table are refused. Patterns are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from shoal.tokenizer.errors import TokenizerError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{tail}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{tail}"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_PUNCTUATION}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{_CASED_WORD.replace('{tail}', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_CASED_WORD.replace('{tail}', _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class PreTokenization:
    """What one name stands for."""

    patterns: tuple[str, ...]
    """Applied in order, each to the pieces that the one before left."""
    ignore_merges: bool = False
    """A piece that is a token as it stands becomes that token, whatever the merges say."""
    add_bos: bool = False
    """What a file without `add_bos_token` means."""


_TABLE: Final[tuple[tuple[tuple[str, ...], PreTokenization], ...]] = (
    (
        ("default", "gpt-2", "phi-2", "olmo", "jais", "mellum", "exaone4", "trillion", "granite-docling"),
        PreTokenization((_GPT2,)),
    ),
    (
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        PreTokenization((r"\p{N}", _GPT2)),
    ),
    (
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        PreTokenization((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    (("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), PreTokenization((_LLAMA3,))),
    (
        ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "grok-2"),
        PreTokenization((_QWEN2,)),
    ),
    (("qwen35",), PreTokenization((_QWEN35,))),
    (("tekken",), PreTokenization((_TEKKEN,), ignore_merges=True, add_bos=True)),
    (("gpt-4o", "llama4", "kanana2"), PreTokenization((_GPT4O,))),
)
PRE_TOKENIZATIONS: Final = {name: entry for names, entry in _TABLE for name in names}


def find_pre_tokenization(name: str) -> PreTokenization:
    """The entry of `name`. Raises TokenizerError naming it and the known ones."""
    try:
        return PRE_TOKENIZATIONS[name]
    except KeyError:
        known = ", ".join(sorted(PRE_TOKENIZATIONS))
        raise TokenizerError(
            f"tokenizer.ggml.pre = {name!r} is not supported; known: {known}. Use the model's tokenizer.json instead"
        ) from None


def build_pre_tokenizer(entry: PreTokenization) -> PreTokenizer:
    """Splits by the patterns, then spells bytes as the byte-level alphabet does."""
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in entry.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
