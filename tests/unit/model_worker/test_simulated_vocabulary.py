from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_setup import SetupError, set_up
from shoal.model_worker.simulated_vocabulary import VocabularyError, read_vocab_size
from support.gguf_files import write_gguf
from support.model import smollm2_path

BPE = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 7}},
    "added_tokens": [{"id": 9, "content": "<|end|>"}],
}


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_an_id_beyond_what_the_tokenizer_knows_is_never_made_up(tmp_path: Path) -> None:
    # Weights are padded to 16 rows, and the tokenizer's configuration adds a token of its own.
    declared = {"added_tokens_decoder": {"10": {"content": "<tool>"}}}
    folder = write(tmp_path, tokenizer=BPE, tokenizer_config=declared, config={"vocab_size": 16})
    assert read_vocab_size(folder) == 11
    assert read_vocab_size(folder / "tokenizer.json") == 11


def test_unigram_vocabularies_are_lists(tmp_path: Path) -> None:
    unigram = {"model": {"type": "Unigram", "vocab": [["<unk>", 0], ["a", -1.5]]}}
    assert read_vocab_size(write(tmp_path, tokenizer=unigram)) == 2


def test_without_a_tokenizer_the_models_own_word_counts(tmp_path: Path) -> None:
    assert read_vocab_size(write(tmp_path, config={"text_config": {"vocab_size": 64}})) == 64


def test_gguf_files_know_their_tokens(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": ["a", "b", "c"]})
    assert read_vocab_size(tmp_path / "m.gguf") == read_vocab_size(tmp_path) == 3


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer": "{"},
        {"tokenizer": {"model": {"vocab": {}}}},
        {"tokenizer": {"model": {"vocab": 3}}},
        {"tokenizer": {"model": None}},
        {"tokenizer": {"model": {"vocab": {"a": "b"}}}},
        {"config": {"vocab_size": 0}},
        {"config": {"vocab_size": "many"}},
        {"config": []},
    ],
)
def test_files_that_do_not_say_are_named(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(VocabularyError, match=str(tmp_path)):
        read_vocab_size(write(tmp_path, **files))


def test_a_file_that_is_cut_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": ["a", "b", "c"]})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VocabularyError, match=r"m\.gguf"):
        read_vocab_size(path)


def test_simulated_workers_learn_it_from_the_model_that_they_are_given() -> None:
    config = WorkerConfig(device="simulated", model=str(smollm2_path()))
    parts = set_up(config, lambda stage, fraction: None)
    assert (parts.info.vocab_size, parts.info.eos_token_ids) == (49_152, (49_151,))
    assert set_up(WorkerConfig(device="simulated"), lambda stage, fraction: None).info.vocab_size == 32_000


def test_a_model_that_is_not_there_ends_the_start_and_names_the_way_around(tmp_path: Path) -> None:
    config = WorkerConfig(device="simulated", model=str(tmp_path / "none.gguf"))
    with pytest.raises(SetupError, match=r"none\.gguf.*simulated_vocab_size"):
        set_up(config, lambda stage, fraction: None)
