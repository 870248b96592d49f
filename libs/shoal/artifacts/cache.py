"""The cache of fetched files: where it is, how processes share it, and what is known about each file.

    <root>/pypi/<project>/<version>/<member>    files this library wrote, each by an atomic rename
    <root>/records/<key>.json                   size and sha256 of a file, so that a start need not hash gigabytes
    <root>/partial/<key>                        downloads under way; resumed by the next attempt
    <root>/locks/<key>.lock                     one fetch of a source at a time, across processes

Everything in it may be deleted while nothing runs; what is missing is fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import filelock
import msgspec

from shoal.artifacts.errors import ArtifactError, NoSpace

RESERVE_BYTES: Final = 64 << 20
"""Left free on the disk: filling it to the last byte breaks everything else on the machine."""
_MAX_RECORD_BYTES: Final = 1 << 16


class FileRecord(msgspec.Struct, frozen=True):
    """What is known about a file that was hashed once."""

    size: int
    sha256: str
    source: str
    mtime_ns: int | None = None
    """Set for files that others own and may change; files below the cache's root are only written by it."""


def default_root() -> Path:
    """`$SHOAL_CACHE_DIR`, else `$XDG_CACHE_HOME/shoal/models`, else `~/.cache/shoal/models`."""
    if chosen := os.environ.get("SHOAL_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "shoal" / "models"


def key_of(text: str) -> str:
    """A file name for `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Cache:
    """One cache folder. Creates nothing until something is written, so that a read-only one can serve hits."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def wheel_member_path(self, project: str, version: str, member: str) -> Path:
        """Where a wheel's member belongs. `member` is a checked relative path."""
        return self.root / "pypi" / project / version / member

    def partial_path(self, key: str) -> Path:
        """Where a download under way is kept; its folder exists afterwards."""
        return self._folder("partial") / key

    def read_record(self, path: Path) -> FileRecord | None:
        """The record of `path`, or None when there is none or the file is not the one recorded."""
        try:
            stat = path.stat()
            with self._record_path(path).open("rb") as file:
                record = msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=FileRecord)
        except (OSError, msgspec.MsgspecError):
            return None
        unchanged = record.size == stat.st_size and record.mtime_ns in (None, stat.st_mtime_ns)
        return record if unchanged else None

    def write_record(self, path: Path, sha256: str, source: str) -> None:
        """Remembers the digest of a file."""
        stat = path.stat()
        owned = path.is_relative_to(self.root / "pypi")
        record = FileRecord(stat.st_size, sha256, source, None if owned else stat.st_mtime_ns)
        target = self._record_path(path)
        self._folder("records")
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".record-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(record))
        Path(name).replace(target)

    def digest(self, path: Path, source: str, *, rehash: bool) -> str:
        """The sha256 of `path`, from its record unless `rehash`. Records what it computes when it can."""
        record = None if rehash else self.read_record(path)
        if record is not None:
            return record.sha256
        sha256 = hash_file(path)
        with contextlib.suppress(OSError, ArtifactError):  # a read-only cache only makes the next start slower
            self.write_record(path, sha256, source)
        return sha256

    @contextlib.contextmanager
    def lock(self, key: str, timeout_s: float) -> Iterator[None]:
        """Holds the lock `key` against other threads and processes. Raises ArtifactError after `timeout_s`."""
        path = self._folder("locks") / f"{key}.lock"
        lock = filelock.FileLock(path, timeout=timeout_s, thread_local=False)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise ArtifactError(
                f"another process has held {path} for {timeout_s:.0f} s; it may still be downloading: wait, or end it"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _record_path(self, path: Path) -> Path:
        name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return self.root / "records" / f"{key_of(name.as_posix())}.json"

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"cannot write the model cache {self.root}: {error.strerror}; set SHOAL_CACHE_DIR to a writable folder"
            ) from error
        return folder


def hash_file(path: Path) -> str:
    """The sha256 of a file, hex. About 1 GB/s with SHA instructions."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raises NoSpace unless `num_bytes` and a reserve fit on the disk of `folder`, an existing folder."""
    free = shutil.disk_usage(folder).free
    if num_bytes + RESERVE_BYTES > free:
        raise NoSpace(
            f"{what} needs {format_bytes(num_bytes)} on the disk of {folder}, which has {format_bytes(free)} free "
            f"(of which {format_bytes(RESERVE_BYTES)} stay free); make room or set SHOAL_CACHE_DIR to another disk"
        )


@contextlib.contextmanager
def disk_full_named(path: Path, what: str) -> Iterator[None]:
    """Turns a full disk while writing `path` into NoSpace, and removes `path` so that the disk is not left full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        path.unlink(missing_ok=True)
        raise NoSpace(
            f"the disk of {path.parent} became full while writing {what}; the incomplete file was removed. "
            "Make room or set SHOAL_CACHE_DIR to another disk"
        ) from error


def format_bytes(num_bytes: int) -> str:
    """For people: 98.4 MB."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
