"""What is written beside files: facts about a version, and what a name points to. JSON with a digest behind it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from shoal.lora_registry.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter

FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
RECORD_FILE: Final = "record.json"
CHUNK_BYTES: Final = 1 << 20
"""What is verified at a time when a file is read."""
MAX_FORMER: Final = 64
"""Versions that a name remembers."""
_MAX_RECORD_BYTES: Final = 4 << 20
_R = TypeVar("_R")


class FileRecord(msgspec.Struct, frozen=True):
    """One of a version's files."""

    num_bytes: int
    sha256: bytes
    chunks: tuple[bytes, ...]
    """sha256 of each CHUNK_BYTES of it."""


class VersionRecord(msgspec.Struct, frozen=True):
    """A version, as it was published."""

    adapter: Adapter
    files: dict[str, FileRecord]
    """By name: those of FILES."""
    published_unix_ms: int
    uri: str
    """Where it came from first."""

    @property
    def digest(self) -> str:
        """Its name in the store."""
        return self.adapter.digest

    @property
    def num_bytes(self) -> int:
        """Of its files."""
        return sum(file.num_bytes for file in self.files.values())


class NameRecord(msgspec.Struct, frozen=True):
    """A name. Versions are numbered from 1, and no number is given twice."""

    name: str
    last_version: int
    """Highest number that was given."""
    current: int
    """Number of the version that it points to; 0: none, the name was removed."""
    versions: tuple[tuple[int, str], ...]
    """Number and digest, oldest first; those of versions that are gone are left out."""
    is_set: bool = False
    """Whether it is there because the settings name it."""

    @property
    def digest(self) -> str | None:
        """What it points to."""
        return self.digest_of(self.current)

    def digest_of(self, version: int) -> str | None:
        """None: no such version, or it is gone."""
        return dict(self.versions).get(version)

    def pointing_to(self, digest: str, *, is_set: bool) -> NameRecord:
        """With a version after all others, unless it points there."""
        if self.digest == digest:
            return msgspec.structs.replace(self, is_set=is_set)
        number = self.last_version + 1
        versions = (*self.versions, (number, digest))[-MAX_FORMER:]
        return NameRecord(self.name, number, number, versions, is_set)

    def removed(self) -> NameRecord:
        """Points nowhere; numbers go on if it comes back."""
        return NameRecord(self.name, self.last_version, 0, ())

    def without(self, digest: str) -> NameRecord:
        """As it is when a version is gone."""
        versions = tuple(each for each in self.versions if each[1] != digest)
        current = self.current if self.current in dict(versions) else 0
        return NameRecord(self.name, self.last_version, current, versions, self.is_set)


def encode_record(record: VersionRecord | NameRecord) -> bytes:
    """The bytes of its file."""
    content = msgspec.json.encode(record)
    return content + b"\n" + hashlib.sha256(content).hexdigest().encode() + b"\n"


def read_record(path: Path, kind: type[_R]) -> _R | None:
    """None when there is none, or it is damaged. Raises OSError when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_RECORD_BYTES)
    except FileNotFoundError:
        return None
    content, _, seal = data.partition(b"\n")
    if seal != hashlib.sha256(content).hexdigest().encode() + b"\n":
        return None
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError:
        return None
