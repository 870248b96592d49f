"""How many token ids a model's tokenizer knows: a simulated worker makes up ids, and gateways turn them into text.

Only headers and the tokenizer's files are read. `vocab_size` of config.json is looked at last: weights are often padded
beyond what the tokenizer knows, and an id from there has no text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.gguf import GgufError, SkippedArray, is_gguf, map_file, read_metadata

_MAX_FILE_BYTES: Final = 1 << 28
_GGUF_TOKENS: Final = "tokenizer.ggml.tokens"


class VocabularyError(Exception):
    """Nothing there tells how large the vocabulary is; the message says what was looked at."""


def read_vocab_size(path: Path) -> int:
    """One more than the largest token id of the model at `path`: a GGUF file, or a folder with one, with
    tokenizer.json, or with config.json.

    Raises VocabularyError or OSError.
    """
    try:
        return _read(path)
    except GgufError as error:
        raise VocabularyError(str(error)) from error
    except (msgspec.MsgspecError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise VocabularyError(f"{path}: cannot tell how many tokens its tokenizer knows: {error}") from error


def _read(path: Path) -> int:
    if is_gguf(path):
        return _of_gguf(path)
    folder = path if path.is_dir() else path.parent
    if (folder / "tokenizer.json").is_file():
        return 1 + max(_token_ids(_object(folder / "tokenizer.json"), _object(folder / "tokenizer_config.json")))
    files = [file for file in sorted(folder.glob("*.gguf")) if path.is_dir()]
    if len(files) == 1:
        return _of_gguf(files[0])
    config = _object(folder / "config.json")
    size = (config.get("text_config") or config)["vocab_size"]
    if type(size) is not int or size < 1:
        raise ValueError(f"vocab_size of config.json is {size!r}")
    return size


def _of_gguf(path: Path) -> int:
    with map_file(path) as data:
        tokens = read_metadata(path, data).get(_GGUF_TOKENS)
    if not isinstance(tokens, SkippedArray) or not tokens.length:
        raise ValueError(f"its header has no {_GGUF_TOKENS}")
    return tokens.length


def _token_ids(tokenizer: dict[str, Any], config: dict[str, Any]) -> Iterator[int]:
    vocabulary = tokenizer["model"]["vocab"]
    # Unigram models have a list, whose places are the ids.
    yield from vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    yield from (token["id"] for token in tokenizer.get("added_tokens") or ())
    yield from map(int, config.get("added_tokens_decoder") or ())


def _object(path: Path) -> dict[str, Any]:
    """Empty when the file does not exist."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_FILE_BYTES} bytes")
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
