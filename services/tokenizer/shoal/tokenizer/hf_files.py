"""Loads a tokenizer from a folder in Hugging Face's layout: tokenizer.json and the files around it.

    tokenizer.json            the tokenizer itself (required)
    tokenizer_config.json     named tokens, added tokens, chat template
    special_tokens_map.json   named tokens, in older models
    chat_template.jinja       the chat template (or chat_template.json, or additional_chat_templates/<name>.jinja)
    generation_config.json    ids that end a completion (or config.json)

What goes around a text (bos, eos) is what tokenizer.json says; `add_bos_token` in tokenizer_config.json is for
tokenizers without one, as in transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import AddedToken, Tokenizer

from shoal.tokenizer.definition import DEFAULT_TEMPLATE, TokenizerDefinition
from shoal.tokenizer.errors import TokenizerError

MAX_FILE_BYTES: Final = 1 << 28
_NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_folder(folder: Path) -> TokenizerDefinition:
    """The tokenizer in `folder`. Raises TokenizerError naming the file and what is wrong with it."""
    tokenizer = _load_tokenizer(folder / "tokenizer.json")
    config = _read_object(folder / "tokenizer_config.json")
    older = _read_object(folder / "special_tokens_map.json")
    named = {name: text for name in _NAMES if (text := _text_of(config.get(name, older.get(name)))) is not None}
    _add_declared_tokens(tokenizer, config, folder)
    _mark_special(tokenizer, [*named.values(), *_extra_special_tokens(config, older)])
    return TokenizerDefinition(
        tokenizer=tokenizer,
        bos_token_id=_id_of(tokenizer, named.get("bos_token")),
        eos_token_ids=_find_eos_ids(folder, tokenizer, named.get("eos_token")),
        chat_templates=_find_templates(folder, config),
        named_tokens=named,
    )


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: larger than {MAX_FILE_BYTES} bytes, which no tokenizer is")
        tokenizer = Tokenizer.from_file(str(path))
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    except TokenizerError:
        raise
    except Exception as error:  # what the library raises: a bare Exception
        raise TokenizerError(f"{path}: not a tokenizer of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file does not exist."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_FILE_BYTES:
        raise TokenizerError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise TokenizerError(f"{path}: {error}") from error


def _text_of(token: Any) -> str | None:
    """A token is written as its text or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _extra_special_tokens(*configs: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for config in configs:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = config.get(key) or []
            values = tokens.values() if isinstance(tokens, dict) else tokens
            found += [text for token in values if (text := _text_of(token)) is not None]
    return found


def _add_declared_tokens(tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Adds what `added_tokens_decoder` declares and tokenizer.json lacks; the ids must come out as declared."""
    present = tokenizer.get_added_tokens_decoder()
    declared = config.get("added_tokens_decoder") or {}
    for token_id, fields in sorted((int(key), value) for key, value in declared.items()):
        if token_id in present:
            continue
        flags = {name: fields[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in fields}
        token = AddedToken(fields["content"], special=bool(fields.get("special")), **flags)
        _ = tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if (got := tokenizer.token_to_id(token.content)) != token_id:
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder gives {token.content!r} the id {token_id}, "
                f"tokenizer.json leads to {got}"
            )


def _mark_special(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Adds the tokens of `texts` as special; those that tokenizer.json declares keep the flags it gives them."""
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [text for text in dict.fromkeys(texts) if text not in present]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])


def _id_of(tokenizer: Tokenizer, text: str | None) -> int | None:
    return None if text is None else tokenizer.token_to_id(text)


def _find_eos_ids(folder: Path, tokenizer: Tokenizer, eos: str | None) -> tuple[int, ...]:
    generation = _read_object(folder / "generation_config.json")
    source = generation if "eos_token_id" in generation else _read_object(folder / "config.json")
    value = source.get("eos_token_id")
    declared = value if isinstance(value, list) else [value]
    ids = {token_id for token_id in (*declared, _id_of(tokenizer, eos)) if token_id is not None}
    size = max(tokenizer.get_vocab().values()) + 1
    if not all(isinstance(token_id, int) and 0 <= token_id < size for token_id in ids):
        raise TokenizerError(f"{folder}: eos_token_id = {value!r}: the vocabulary has {size} tokens")
    return tuple(sorted(ids))


def _find_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    declared = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(declared, str):
        templates[DEFAULT_TEMPLATE] = declared
    elif isinstance(declared, list):
        templates |= {str(entry["name"]): str(entry["template"]) for entry in declared}
    if isinstance(legacy := _read_object(folder / "chat_template.json").get("chat_template"), str):
        templates[DEFAULT_TEMPLATE] = legacy
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (default := folder / "chat_template.jinja").is_file():
        files[DEFAULT_TEMPLATE] = default
    for name, path in files.items():
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        templates[name] = path.read_text(encoding="utf-8")
    return templates
