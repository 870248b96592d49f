"""Folders in Hugging Face's layout, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.gguf_tokenizer import build_definition
from shoal.tokenizer.loading import load_definition
from support.gguf_files import sentencepiece_keys
from support.texts import TEXTS


def write(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_definition(sentencepiece_keys()).tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True, "normalized": False},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": "from config",
    }
    write(tmp_path / "tokenizer_config.json", config)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    write(path, json.loads(path.read_text()) | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"additional_special_tokens": ["<tool>", "<brand new>"]},
        {"added_tokens_decoder": {"448": {"content": "<later>", "special": True, "normalized": False}}},
    ],
)
def test_ids_equal_those_of_transformers(folder: Path, changes: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    size = load_definition(folder).tokenizer.get_vocab_size()
    if declared := changes.get("added_tokens_decoder"):
        changes = {"added_tokens_decoder": {str(size): declared["448"]}}
    change_config(folder, **changes)
    ours, theirs = load_definition(folder).tokenizer, AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, "<tool> <brand new><later>"):
        for special in (False, True):
            got = ours.encode(text, add_special_tokens=special).ids
            assert got == theirs.encode(text, add_special_tokens=special), (text, special)
            assert ours.decode(got) == theirs.decode(got, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.get_vocab_size() == len(theirs)


def test_what_the_files_say(folder: Path) -> None:
    definition = load_definition(folder / "tokenizer.json")
    assert definition.bos_token_id == 1
    assert definition.eos_token_ids == (2,)
    assert definition.named_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert definition.chat_templates == {"default": "from config"}


def test_ends_of_completions_come_from_the_generation_config(folder: Path) -> None:
    write(folder / "config.json", {"eos_token_id": 5})
    assert load_definition(folder).eos_token_ids == (2, 5)
    write(folder / "generation_config.json", {"eos_token_id": [7, 9]})
    assert load_definition(folder).eos_token_ids == (2, 7, 9)
    write(folder / "generation_config.json", {"eos_token_id": 100_000})
    with pytest.raises(TokenizerError, match="eos_token_id = 100000: the vocabulary has"):
        load_definition(folder)


def test_templates_come_from_any_of_their_places(folder: Path) -> None:
    change_config(folder, chat_template=[{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    assert load_definition(folder).chat_templates == {"default": "a", "tool_use": "b"}
    write(folder / "chat_template.json", {"chat_template": "c"})
    assert load_definition(folder).chat_templates["default"] == "c"
    write(folder / "chat_template.jinja", "d")
    (folder / "additional_chat_templates").mkdir()
    write(folder / "additional_chat_templates" / "rag.jinja", "e")
    assert load_definition(folder).chat_templates == {"default": "d", "tool_use": "b", "rag": "e"}


def test_older_models_name_tokens_elsewhere(folder: Path) -> None:
    write(folder / "tokenizer_config.json", {})
    write(folder / "special_tokens_map.json", {"bos_token": "<s>", "additional_special_tokens": ["<brand new>"]})
    definition = load_definition(folder)
    assert definition.bos_token_id == 1
    new = definition.tokenizer.token_to_id("<brand new>")
    assert new is not None
    assert definition.tokenizer.get_added_tokens_decoder()[new].special


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer"),
        ("tokenizer.json", "not json", r"tokenizer\.json: not a tokenizer"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config\.json: Expected `object`"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9999": {"content": "<x>"}}},
            r"gives '<x>' the id 9999, tokenizer\.json leads to",
        ),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, content: Any, named: str) -> None:
    write(folder / name, content)
    with pytest.raises(TokenizerError, match=named):
        load_definition(folder)
