from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.model_worker.loader import ModelLoadError, load_model, open_checkpoint
from support.forward import forward_logits
from support.tiny_models import save_tiny

IDS = torch.arange(40)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_tiny(tmp_path)
    return tmp_path


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_shards_load_like_one_file(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    sharded = tmp_path_factory.mktemp("sharded")
    save_tiny(sharded, max_shard_size="100KB")
    assert len(open_checkpoint(sharded).files) > 1
    one, many = load_model(directory), load_model(sharded)
    assert torch.equal(forward_logits(one, IDS), forward_logits(many, IDS))
    assert one.digest != many.digest


def test_digest_is_that_of_weights_config_and_dtype(directory: Path) -> None:
    digest = load_model(directory, dtype="float32").digest
    assert load_model(directory, dtype="float32").digest == digest
    assert load_model(directory, dtype="bfloat16").digest != digest
    edit_config(directory, rms_norm_eps=1e-3)
    assert load_model(directory, dtype="float32").digest != digest


def test_auto_dtype_follows_the_checkpoint(directory: Path) -> None:
    assert load_model(directory).dtype == torch.float32
    edit_config(directory, dtype="float16")
    assert load_model(directory).dtype == torch.bfloat16


def test_progress_ends_at_the_total(directory: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(directory, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in load_file(directory / "model.safetensors").values())


def test_all_missing_tensors_are_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"lacks 2 tensors: model.layers.1.mlp.up_proj.weight, model.norm.weight"):
        load_model(directory)


def test_unexpected_tensors_are_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    save_file({**load_file(path), "model.extra.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelLoadError, match=r"1 tensors that LlamaForCausalLM does not use: model.extra.weight"):
        load_model(directory)


def test_wrong_shape_is_named(directory: Path) -> None:
    edit_config(directory, vocab_size=200)
    with pytest.raises(ModelLoadError, match=r"model.embed_tokens.weight is \(199, 64\), not \(200, 64\)"):
        load_model(directory)


def test_truncated_file_names_tensor_and_offsets(directory: Path) -> None:
    path = directory / "model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size - 10)
    with pytest.raises(ModelLoadError, match=rf"truncated: tensor \S+ ends at byte {size}, the file at {size - 10}"):
        load_model(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"\xff" * 100, "is not a safetensors file: header of"),
        ((20).to_bytes(8, "little") + b"x" * 40, "header .bytes 8 to 28. is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "header is not a JSON object"),
        ((24).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}   ', "entry of tensor a is malformed"),
    ],
)
def test_corrupt_headers(directory: Path, content: bytes, message: str) -> None:
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        load_model(directory)


def test_missing_shard_and_escaping_index(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"is not a file name"):
        load_model(directory)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    with pytest.raises(ModelLoadError, match=r"gone.safetensors: cannot be read: No such file"):
        load_model(directory)


def test_unknown_architecture_and_bad_config(directory: Path) -> None:
    edit_config(directory, architectures=["GPT2LMHeadModel"])
    with pytest.raises(ModelLoadError, match=r"GPT2LMHeadModel is not supported"):
        load_model(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config.json: is not JSON"):
        load_model(directory)


def test_paths_and_options_that_make_no_sense(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    for path, options, message in (
        (empty / "gone", {}, "does not exist"),
        (empty, {}, "0 .gguf files"),
        (empty, {"load_format": "safetensors"}, "cannot be read"),
        (directory / "config.json", {"load_format": "safetensors"}, "must be a directory"),
        (directory, {"dtype": "float16"}, "dtype 'float16' is not supported"),
        (directory, {"load_format": "pickle"}, "load format 'pickle' is unknown"),
    ):
        with pytest.raises(ModelLoadError, match=message):
            load_model(path, **options)  # type: ignore[arg-type]


def test_dummy_weights_depend_on_the_seed_alone(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    first, again, other = (load_model(directory, load_format="dummy", seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    logits = forward_logits(first, IDS)
    assert torch.equal(logits, forward_logits(again, IDS))
    assert not torch.equal(logits, forward_logits(other, IDS))
    assert logits.isfinite().all()
