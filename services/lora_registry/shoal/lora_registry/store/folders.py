"""The store's folders: what is read at a start, and the steps of each change."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from shoal.lora_registry.adapters import inspect
from shoal.lora_registry.errors import AdapterRefused
from shoal.lora_registry.store.disk import Disk
from shoal.lora_registry.store.records import (
    FILES,
    RECORD_FILE,
    NameRecord,
    VersionRecord,
    encode_record,
    read_record,
)

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_VERIFY_THREADS: Final = 4
_log = structlog.get_logger("shoal.lora_registry")


@dataclass(frozen=True, slots=True)
class Found:
    """What is in the folder and right."""

    versions: dict[str, VersionRecord]
    names: dict[str, NameRecord]
    dropped: Sequence[str]
    """What was not, and is gone; for people."""


class StoreFolders:
    """Paths, and steps that leave a whole store wherever they end."""

    def __init__(self, root: Path, disk: Disk) -> None:
        """Locks the folder. Raises OSError, BlockingIOError when another process has it."""
        self.root = root
        self.disk = disk
        self.incoming = root / "incoming"
        self._versions = root / "versions"
        self._names = root / "names"
        for path in (root, self.incoming, self._versions, self._names):
            disk.make_folder(path)
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise BlockingIOError(f"another process has {root}; a store has one registry") from error

    def close(self) -> None:
        """Ends the lock."""
        os.close(self._lock)

    def version(self, digest: str) -> Path:
        """The folder of a version."""
        return self._versions / digest

    def read_all(self) -> Found:
        """Verifies every byte; removes what is left over and what is damaged. Raises OSError."""
        for path in self.incoming.iterdir():
            self.disk.remove(path)
        dropped: list[str] = []
        versions: dict[str, VersionRecord] = {}
        paths = sorted(self._versions.iterdir())
        with ThreadPoolExecutor(_VERIFY_THREADS, thread_name_prefix="verify") as threads:
            for path, record in zip(paths, threads.map(_verify, paths), strict=True):
                if record is None:
                    dropped.append(f"version {path.name}")
                    self.discard(self.forget(path.name))
                else:
                    versions[path.name] = record
        return Found(versions, self._read_names(versions, dropped), dropped)

    def _read_names(self, versions: dict[str, VersionRecord], dropped: list[str]) -> dict[str, NameRecord]:
        names: dict[str, NameRecord] = {}
        for path in sorted(self._names.iterdir()):
            record = read_record(path, NameRecord)
            if record is None or path.name != _file_of(record.name):
                if path.suffix == ".json":
                    dropped.append(f"name {path.name}")
                self.disk.remove(path)
                continue
            kept = record
            for _, digest in record.versions:
                kept = kept if digest in versions else kept.without(digest)
            if record.current and not kept.current:
                dropped.append(f"name {record.name!r}, whose version is gone")
            if kept != record:
                self.write_name(kept)
            names[record.name] = kept
        return names

    def seal(self, incoming: Path, record: VersionRecord) -> None:
        """Last step before an adapter may be kept: all of it is on disk."""
        self.disk.write(incoming / RECORD_FILE, [encode_record(record)])
        self.disk.sync(incoming)

    def keep(self, incoming: Path, digest: str) -> None:
        """From here on it is a version."""
        if self.version(digest).exists():  # of a change that failed halfway
            self.discard(self.forget(digest))
        self.disk.rename(incoming, self.version(digest))
        self.disk.sync(self._versions)

    def write_name(self, record: NameRecord) -> None:
        """From here on the name points there."""
        beside = self.incoming / uuid.uuid4().hex
        try:
            self.disk.write(beside, [encode_record(record)])
            self.disk.rename(beside, self._names / _file_of(record.name))
        except BaseException:
            self.discard(beside)
            raise
        self.disk.sync(self._names)

    def forget(self, digest: str) -> Path:
        """Away in one step: what is half removed is never taken for a version. What is left to `discard`."""
        leaving = self.incoming / uuid.uuid4().hex
        self.disk.rename(self.version(digest), leaving)
        self.disk.sync(self._versions)
        return leaving

    def discard(self, path: Path) -> None:
        """As far as that goes: the next start removes what is left."""
        try:
            self.disk.remove(path)
        except OSError as error:
            _log.warning("could not remove", path=str(path), error=str(error))


def _verify(path: Path) -> VersionRecord | None:
    """The record, if files and record are what was published. Raises OSError."""
    record = read_record(path / RECORD_FILE, VersionRecord) if _DIGEST.fullmatch(path.name) else None
    if record is None or record.digest != path.name or record.files.keys() != set(FILES):
        return None
    with contextlib.suppress(AdapterRefused, FileNotFoundError):
        for name, file in record.files.items():
            with (path / name).open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").digest() != file.sha256:
                    return None
        # Not only the files as they came, but also what this version of the registry makes of them.
        return record if inspect(path) == record.adapter else None
    return None


def _file_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32] + ".json"
