"""Hugging Face repositories, against a hub of this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.artifacts import ArtifactError, ArtifactNotFound, DigestMismatch, resolve
from shoal.artifacts import download as download_module
from support.package_index import COMMIT, FileServer, add_repository, serve

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "model-Q4_0.gguf": b"g" * 4000,
    "pytorch_model.bin": b"pickle",
    "onnx/model.json": b"{}",
    "README.md": b"#",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve(FileServer()) as running:
        add_repository(running, "org/model", FILES)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        original = download_module.RetryPolicy
        monkeypatch.setattr(
            "shoal.artifacts.resolving.RetryPolicy",
            lambda deadline_s: original(deadline_s=deadline_s, base_delay_s=0.0005, max_delay_s=0.01, max_attempts=2),
        )
        yield running


def test_a_repository_brings_only_what_a_model_needs(server: FileServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = resolve("hf://org/model", cache_dir=tmp_path, progress=lambda *state: seen.append(state))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert tmp_path in folder.parents
    total = sum(len(FILES[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert seen[-1] == (total, total)


def test_a_tokenizer_brings_no_weights(server: FileServer, tmp_path: Path) -> None:
    folder = resolve("hf://org/model", cache_dir=tmp_path, contents="tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]


def test_one_file_can_be_named_and_pinned(server: FileServer, tmp_path: Path) -> None:
    digest = hashlib.sha256(FILES["model-Q4_0.gguf"]).hexdigest()
    path = resolve(f"hf://org/model@main/model-Q4_0.gguf#sha256={digest}", cache_dir=tmp_path)
    assert path.read_bytes() == FILES["model-Q4_0.gguf"]
    with pytest.raises(DigestMismatch, match=digest):
        resolve("hf://org/model@main/model-Q4_0.gguf", cache_dir=tmp_path, sha256="0" * 64)


def test_a_fetched_repository_is_used_offline(server: FileServer, tmp_path: Path) -> None:
    folder = resolve("hf://org/model", cache_dir=tmp_path)
    server.requests.clear()
    assert resolve("hf://org/model", cache_dir=tmp_path, offline=True) == folder
    assert resolve(f"hf://org/model@{COMMIT}", cache_dir=tmp_path, offline=True) == folder
    assert not server.requests


def test_a_fetched_repository_is_used_when_the_hub_is_down(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve("hf://org/model", cache_dir=tmp_path)
    server.files.clear()
    server.statuses["/api/models/org/model/revision/main"] = [503] * 99
    assert resolve("hf://org/model", cache_dir=tmp_path, timeout_s=20) == folder


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("hf://org/absent", "no such repository"),
        ("hf://org/model@v9", "no branch, tag or commit 'v9'"),
        ("hf://org/model/model-Q8_0.gguf", r"no file 'model-Q8_0.gguf'; of its 7 files: model-Q4_0\.gguf"),
    ],
)
def test_what_is_missing_is_named(server: FileServer, tmp_path: Path, uri: str, named: str) -> None:
    with pytest.raises(ArtifactNotFound, match=named):
        resolve(uri, cache_dir=tmp_path)


def test_offline_without_a_copy_says_so(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="offline"):
        resolve("hf://org/model", cache_dir=tmp_path, offline=True)
    assert not server.requests


def test_no_hub_at_all_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtifactError, match=r"ConnectError|refused"):
        resolve("hf://org/model", cache_dir=tmp_path)
