"""Adapters from folders, hubs, wheels and web servers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.artifacts import (
    ADAPTER_FILES,
    ArtifactError,
    ArtifactNotFound,
    DigestMismatch,
    FileSource,
    HubSource,
    parse_adapter_source,
    resolve_adapter,
)
from shoal.artifacts.download import RetryPolicy
from support.package_index import FileServer, add_project, add_repository, make_wheel, serve

CONFIG, WEIGHTS = ADAPTER_FILES
FILES = {CONFIG: b"{}", WEIGHTS: b"w" * 5000}
DIGEST = hashlib.sha256(FILES[WEIGHTS]).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve(FileServer()) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("PIP_INDEX_URL", f"{running.url}/simple")
        monkeypatch.setattr(
            "shoal.artifacts.adapter.RetryPolicy",
            lambda deadline_s: RetryPolicy(
                deadline_s=deadline_s, base_delay_s=0.0005, max_delay_s=0.01, max_attempts=2
            ),
        )
        yield running


def bring(uri: str, tmp_path: Path, **options: Any) -> dict[str, bytes]:
    fetched = tmp_path / "fetched"
    fetched.mkdir(exist_ok=True)
    chosen: dict[str, Any] = {"cache_dir": tmp_path / "cache", "max_bytes": 1 << 20, "timeout_s": 20, **options}
    folder = resolve_adapter(uri, fetched, **chosen)
    return {name: (folder / name).read_bytes() for name in ADAPTER_FILES}


def put(server: FileServer, path: str) -> str:
    for name, content in FILES.items():
        server.files[f"{path}/{name}"] = (content, "application/octet-stream")
    return f"{server.url}{path}"


@pytest.mark.parametrize(
    ("uri", "folder", "sha256"),
    [
        ("/a/b", FileSource(Path("/a/b")), None),
        ("/a/b/", FileSource(Path("/a/b")), None),
        (f"/a/b/{WEIGHTS}", FileSource(Path("/a/b")), None),
        ("hf://org/sql@v1", HubSource("org/sql", "v1"), None),
        ("hf://org/all/sql", HubSource("org/all", "main", "sql"), None),
        (f"hf://org/sql/{WEIGHTS}#sha256={'a' * 64}", HubSource("org/sql"), "a" * 64),
        ("https://host/a", "https://host/a", None),
        (f"https://host/a/{WEIGHTS}#sha256={'a' * 64}", "https://host/a", "a" * 64),
    ],
)
def test_a_source_is_the_folder_of_both_files(uri: str, folder: object, sha256: str | None) -> None:
    source = parse_adapter_source(uri)
    assert (source.folder, source.sha256) == (folder, sha256)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("", "give 1 to 4096 characters"),
        ("ftp://host/a", "unknown scheme 'ftp'"),
        (f"/a/b#sha256={'a' * 64}", f"a fragment pins one file; name it \\(/a/b/{WEIGHTS}#"),
        (f"/a/{WEIGHTS}#md5=1", "unknown fragment 'md5=1'"),
        ("hf://org/sql?x=1", "take no query"),
        ("https://host/a?x=1", "without a query"),
        ("https://", "expected https://host/folder"),
        ("https://me:pw@host/a", "https://host/a: give no user and password"),
        ("http://host:port/a", "Invalid port"),
        ("https://xn--\u00e9/a", "is no address"),
    ],
)
def test_what_is_no_source_is_said(uri: str, problem: str) -> None:
    with pytest.raises(ArtifactError, match=problem):
        parse_adapter_source(uri)


def test_two_pins_must_be_one() -> None:
    uri = f"/a/{WEIGHTS}#sha256={'a' * 64}"
    assert parse_adapter_source(uri, "A" * 64).sha256 == "a" * 64
    with pytest.raises(ArtifactError, match="two different sha256"):
        parse_adapter_source(uri, "b" * 64)


def test_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    assert bring(str(tmp_path), tmp_path, sha256=DIGEST) == FILES
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        bring(str(tmp_path), tmp_path, sha256="0" * 64)
    with pytest.raises(ArtifactError, match="has 5000 bytes; an adapter may have 4999"):
        bring(str(tmp_path), tmp_path, max_bytes=4999)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ArtifactNotFound, match=f"{WEIGHTS} is missing: .*; there are {CONFIG}"):
        bring(str(tmp_path), tmp_path)


def test_a_repository_and_a_folder_of_one(server: FileServer, tmp_path: Path) -> None:
    inner = {f"sql/{name}": content[::-1] + b"s" for name, content in FILES.items()}
    add_repository(server, "org/all", {**FILES, **inner, "README.md": b"#", "tokenizer.json": b"{}"})
    assert bring("hf://org/all", tmp_path) == FILES
    assert bring("hf://org/all/sql", tmp_path) == {name: inner[f"sql/{name}"] for name in ADAPTER_FILES}
    assert not [path for _, path, _ in server.requests if path.endswith(("README.md", "tokenizer.json"))]
    assert bring("hf://org/all", tmp_path, offline=True) == FILES
    with pytest.raises(ArtifactNotFound, match="is missing"):
        bring("hf://org/all/other", tmp_path)


def test_a_folder_of_a_wheel(server: FileServer, tmp_path: Path) -> None:
    wheel = make_wheel({f"adapters/sql/{name}": content for name, content in FILES.items()})
    add_project(server, "adapters", {"adapters-1.0-py3-none-any.whl": wheel})
    assert bring("pypi://adapters==1.0/adapters/sql", tmp_path, sha256=DIGEST) == FILES


def test_a_web_server_that_breaks_off_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    url = put(server, "/sql")
    server.drop_after_bytes[f"/sql/{WEIGHTS}"] = [2000]
    assert bring(url, tmp_path, sha256=DIGEST) == FILES
    assert server.gets(f"/sql/{WEIGHTS}") == [None, "bytes=2000-"]
    # What is behind an address may change.
    server.files[f"/sql/{CONFIG}"] = (b"[]", "application/json")
    assert bring(url, tmp_path)[CONFIG] == b"[]"


def test_a_web_server_that_sends_too_much_is_hung_up_on(server: FileServer, tmp_path: Path) -> None:
    url = put(server, "/sql")
    with pytest.raises(ArtifactError, match="5000 bytes or more; an adapter may have 100"):
        bring(url, tmp_path, max_bytes=100)
    with pytest.raises(ArtifactNotFound, match="offline"):
        bring(url, tmp_path, offline=True)
    with pytest.raises(ArtifactNotFound, match="HTTP 404"):
        bring(f"{server.url}/absent", tmp_path)


@given(
    st.sampled_from(
        ["", "/", "https://", "https://xn--", "http://host", "hf://", "hf://a/", "pypi://a==1/", "file://"]
    ),
    st.text(max_size=40),
)
def test_any_text_is_a_source_or_refused(start: str, rest: str) -> None:
    try:
        source = parse_adapter_source(start + rest)
    except ArtifactError:
        return
    assert source.sha256 is None or len(source.sha256) == 64
