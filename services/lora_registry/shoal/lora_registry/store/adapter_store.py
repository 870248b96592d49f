"""Versions and names: publishing, resolving, reading, collecting. Thread-safe; blocks on the disk."""

from __future__ import annotations

import errno
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shoal.artifacts import hash_file
from shoal.lora_registry.adapters import WEIGHTS_FILE, Adapter, BaseModel, inspect
from shoal.lora_registry.errors import AdapterRefused, Damaged, NoRoom, NotKept
from shoal.lora_registry.store.copying import copy_file
from shoal.lora_registry.store.disk import Disk
from shoal.lora_registry.store.folders import StoreFolders
from shoal.lora_registry.store.reading import AdapterFile
from shoal.lora_registry.store.records import FILES, NameRecord, VersionRecord

MAX_NAMES: Final = 512
"""Those that were removed count, since their numbers go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much it may keep."""

    max_bytes: int
    """Of all versions' files."""
    max_adapter_bytes: int
    """Of one's."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a name points to afterwards."""

    name: NameRecord
    record: VersionRecord
    changed: bool


@dataclass(slots=True)
class _State:
    versions: dict[str, VersionRecord] = field(default_factory=dict)
    names: dict[str, NameRecord] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    """When each version was asked for last."""
    coming_bytes: int = 0
    """Room that is promised to what is being copied."""


class AdapterStore:
    """One folder of adapters. What `publish` returned is there after any crash; what it did not, may not be."""

    def __init__(
        self,
        folder: Path,
        limits: StoreLimits,
        *,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the folder, empties what is left over of a crash, and verifies every byte of every version.

        Raises OSError, BlockingIOError when another process has it. Versions that are damaged, and names that point
        to them, are gone afterwards: `dropped` says which.
        """
        self.limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._folders = StoreFolders(folder, disk or Disk())
        try:
            found = self._folders.read_all()
        except BaseException:
            self._folders.close()
            raise
        self._state = _State(found.versions, found.names, dict.fromkeys(found.versions, 0.0))
        self.dropped: Sequence[str] = found.dropped
        """What was damaged, for people."""

    def close(self) -> None:
        """Lets others have the folder."""
        self._folders.close()

    @property
    def incoming(self) -> Path:
        """A folder of its disk that is emptied at every start."""
        return self._folders.incoming

    @property
    def used_bytes(self) -> int:
        """Of versions that are there."""
        with self._lock:
            return sum(record.num_bytes for record in self._state.versions.values())

    def contents(self) -> tuple[list[NameRecord], list[VersionRecord]]:
        """Names that point somewhere, and versions, of one moment."""
        with self._lock:
            names = [record for _, record in sorted(self._state.names.items()) if record.current]
            return names, [self._state.versions[digest] for digest in sorted(self._state.versions)]

    def versions(self) -> list[VersionRecord]:
        """All of them, by digest."""
        return self.contents()[1]

    def names(self) -> list[NameRecord]:
        """Those that point somewhere, by name."""
        return self.contents()[0]

    def resolve(self, name: str, version: int = 0) -> tuple[int, VersionRecord] | None:
        """The version, and its number under that name; 0: the one that it points to. None: there is none."""
        with self._lock:
            record = self._state.names.get(name)
            number = 0 if record is None else (version or record.current)
            digest = None if record is None else record.digest_of(number)
            if digest is None:
                return None
            self._state.used[digest] = self._clock()
            return number, self._state.versions[digest]

    def publish(
        self,
        name: str,
        source: Path,
        uri: str,
        *,
        check: Callable[[Adapter, str], None] | None = None,
        base_model: BaseModel | None = None,
        is_set: bool = False,
    ) -> Published:
        """Copies an adapter's folder, checks the copy, and points `name` to it. What is kept already is not copied.

        `check` is given the adapter and the sha256 of its weights, and raises AdapterRefused for what is not the one
        that was meant. is_set: the name is there because the settings say so. Raises AdapterRefused, NoRoom, OSError;
        nothing is different then, but that room may have been made.
        """
        num_bytes = self._size(source)
        adapter = inspect(source, base_model)
        if self.version(adapter.digest) is not None:
            if check is not None:
                check(adapter, hash_file(source / WEIGHTS_FILE))
            with self._lock:
                if adapter.digest in self._state.versions:
                    return self._point(name, adapter.digest, is_set=is_set)
        with self._promised(num_bytes), self._incoming() as incoming:
            files = {each: copy_file(self._folders.disk, source / each, incoming / each) for each in FILES}
            adapter = inspect(incoming, base_model)  # of the copy: the source may have changed
            if check is not None:
                check(adapter, files[WEIGHTS_FILE].sha256.hex())
            record = VersionRecord(adapter, files, int(1000 * self._clock()), uri)
            self._folders.seal(incoming, record)
            with self._lock:
                self._require_name(name)
                if record.digest not in self._state.versions:
                    self._folders.keep(incoming, record.digest)
                    self._state.versions[record.digest] = record
                return self._point(name, record.digest, is_set=is_set)

    def fits(self, digest: str, base_model: BaseModel) -> None:
        """Checks a version that is there against a model. Raises AdapterRefused, NotKept, OSError."""
        with self._lock:
            if digest not in self._state.versions:
                raise NotKept(digest)
            folder = self._folders.version(digest)
        inspect(folder, base_model)

    def name(self, name: str) -> NameRecord | None:
        """None: never heard of. One that was removed points nowhere."""
        with self._lock:
            return self._state.names.get(name)

    def version(self, digest: str) -> VersionRecord | None:
        """None: it is not there."""
        with self._lock:
            return self._state.versions.get(digest)

    def remove(self, name: str) -> bool:
        """Whether it was there. Its versions stay."""
        with self._lock:
            before = self._state.names.get(name)
            if before is None or not before.current:
                return False
            self._write_name(before.removed())
            return True

    def open(self, digest: str, file: str) -> AdapterFile:
        """One of FILES; the caller closes it. Raises NotKept, Damaged when it is not there any more, OSError."""
        with self._lock:
            record = self._state.versions.get(digest)
            if record is None:
                raise NotKept(digest)
            self._state.used[digest] = self._clock()
            try:
                opened = (self._folders.version(digest) / file).open("rb")
            except FileNotFoundError as error:
                raise Damaged(digest) from error
        return AdapterFile(opened, record.files[file], digest)

    def drop(self, digest: str) -> list[NameRecord]:
        """Takes a version away that turned out to be damaged. The names that pointed to it, as they were."""
        with self._lock:
            if digest not in self._state.versions:
                return []
            lost = [record for record in self._state.names.values() if record.digest == digest]
            leaving = self._collect(digest)
        self._folders.discard(leaving)
        return lost

    def _size(self, source: Path) -> int:
        total = 0
        for name in FILES:
            try:
                total += (source / name).stat().st_size
            except FileNotFoundError as error:
                raise AdapterRefused(f"{name} is missing: an adapter is {' and '.join(FILES)}") from error
        if total > self.limits.max_adapter_bytes:
            limit = self.limits.max_adapter_bytes
            raise AdapterRefused(f"{total} bytes; one adapter may have {limit} (--max-adapter-bytes)")
        return total

    @contextmanager
    def _promised(self, num_bytes: int) -> Iterator[None]:
        leaving: list[Path] = []
        try:
            with self._lock:
                self._make_room(num_bytes, leaving)
                self._state.coming_bytes += num_bytes
        finally:  # not under the lock: files of gigabytes take a while
            for path in leaving:
                self._folders.discard(path)
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = f"the disk of {self._folders.root} is full; an adapter of {num_bytes} bytes was not taken"
                raise NoRoom(message) from error
            raise
        finally:
            with self._lock:
                self._state.coming_bytes -= num_bytes

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        path = self._folders.incoming / uuid.uuid4().hex
        try:
            self._folders.disk.make_folder(path)
            yield path
        finally:
            self._folders.discard(path)

    def _require_name(self, name: str) -> None:
        names = self._state.names
        if name not in names and len(names) >= MAX_NAMES:
            raise NoRoom(f"{len(names)} names are known, which is the most; a name that was removed counts")

    def _point(self, name: str, digest: str, *, is_set: bool) -> Published:
        self._require_name(name)
        state = self._state
        before = state.names.get(name)
        after = (before or NameRecord(name, 0, 0, ())).pointing_to(digest, is_set=is_set)
        state.used[digest] = self._clock()
        if before is not None and before.digest is not None:
            state.used[before.digest] = self._clock()
        if after != before:
            self._write_name(after)
        return Published(after, state.versions[digest], changed=before is None or before.digest != digest)

    def _write_name(self, record: NameRecord) -> None:
        self._folders.write_name(record)
        self._state.names[record.name] = record

    def _make_room(self, num_bytes: int, leaving: list[Path]) -> None:
        """Collects versions that no name points to, those first that nobody asked for the longest. leaving: gets what
        is left of them."""
        state = self._state
        pointed = {record.digest for record in state.names.values()}
        used = state.coming_bytes + sum(record.num_bytes for record in state.versions.values())
        victims = sorted((each for each in state.versions if each not in pointed), key=lambda each: state.used[each])
        spare = sum(state.versions[each].num_bytes for each in victims)
        if used - spare + num_bytes > self.limits.max_bytes:
            raise NoRoom(
                f"an adapter of {num_bytes} bytes does not fit: {used - spare} of {self.limits.max_bytes} bytes are "
                f"taken by {len(state.versions) - len(victims)} versions that names point to, and by what is coming; "
                "remove a name, or give more (--max-bytes)"
            )
        for digest in victims:
            if used + num_bytes <= self.limits.max_bytes:
                break
            used -= state.versions[digest].num_bytes
            leaving.append(self._collect(digest))

    def _collect(self, digest: str) -> Path:
        """Names forget it first: none may point to what is not there. What is left to discard."""
        state = self._state
        for record in list(state.names.values()):
            if any(each == digest for _, each in record.versions):
                self._write_name(record.without(digest))
        del state.versions[digest], state.used[digest]
        return self._folders.forget(digest)
