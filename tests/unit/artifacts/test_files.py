"""Files of this machine, and where the cache is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shoal.artifacts import ArtifactNotFound, DigestMismatch, LogProgress, default_root, resolve
from shoal.artifacts.cache import Cache


def test_paths_and_file_uris_are_used_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    assert resolve(str(path), cache_dir=tmp_path / "cache") == path
    assert resolve(path.as_uri(), cache_dir=tmp_path / "cache") == path
    assert resolve(str(tmp_path), cache_dir=tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_0.gguf").touch()
    with pytest.raises(ArtifactNotFound, match=r"model-Q4_1\.gguf does not exist; .* has model-Q4_0\.gguf"):
        resolve(str(tmp_path / "model-Q4_1.gguf"))


def test_a_pin_is_checked_again_when_the_file_changes(tmp_path: Path) -> None:
    path, cache = tmp_path / "m", tmp_path / "cache"
    path.write_bytes(b"one")
    pin = hashlib.sha256(b"one").hexdigest()
    assert resolve(str(path), cache_dir=cache, sha256=pin) == path
    record = Cache(cache).read_record(path)
    assert record is not None
    assert record.sha256 == pin
    path.write_bytes(b"three")
    with pytest.raises(DigestMismatch, match=pin):
        resolve(str(path), cache_dir=cache, sha256=pin)
    assert path.read_bytes() == b"three"


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SHOAL_CACHE_DIR", raising=False)
    assert default_root() == tmp_path / "xdg" / "shoal" / "models"
    monkeypatch.setenv("SHOAL_CACHE_DIR", str(tmp_path / "own"))
    assert default_root() == tmp_path / "own"


def test_progress_is_logged_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = LogProgress("model", interval_s=5, clock=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        progress(second, 12)
    progress(12, 12)
    assert capsys.readouterr().out.count("downloading") == 3
