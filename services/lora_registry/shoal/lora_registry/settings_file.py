"""Adapters that the settings want: a file, read again as it changes, and what is made of it.

By level: each pass compares what the file says with what is there, whatever happened before. Names of the file that are
not as it says are published, names that were there because of it and are no longer in it are removed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from shoal.artifacts import ArtifactError
from shoal.lora_registry.errors import AdapterRefused, Damaged, NoRoom, NotKept
from shoal.lora_registry.publishing import NAME, Publisher, Wanted
from shoal.lora_registry.store import AdapterStore

MAX_FILE_BYTES: Final = 1 << 20
_log = structlog.get_logger("shoal.lora_registry")


class AdaptersFileProblem(Exception):
    """The file cannot be used; the message says where and why."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=f"^{NAME.pattern}$")]
    uri: Annotated[str, Meta(min_length=1, max_length=4096)]
    sha256: Annotated[str, Meta(pattern="^([0-9a-fA-F]{64})?$")] | None = None
    rank: Annotated[int, Meta(ge=1, le=512)] | None = None


def read_adapters(path: Path) -> list[Wanted]:
    """A JSON list of {name, uri, sha256?, rank?}, as in a manifest. Raises AdaptersFileProblem."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise AdaptersFileProblem(f"{path}: more than {MAX_FILE_BYTES} bytes")
        entries = msgspec.json.decode(content, type=list[_Entry])
    except (OSError, msgspec.MsgspecError) as error:
        raise AdaptersFileProblem(f"{path}: {error}") from error
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise AdaptersFileProblem(f"{path}: given twice: {', '.join(twice)}; give each name once")
    return [
        Wanted(name=each.name, uri=each.uri, sha256=each.sha256 or "", rank=each.rank or 0, is_set=True)
        for each in entries
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowOptions:
    """How often to look."""

    poll_s: float = 2.0
    retry_s: float = 5.0
    """After a failure; twice as long each time, up to max_retry_s."""
    max_retry_s: float = 300.0


class SettingsFollower:
    """Keeps names as a file says. Without a file it has nothing to do."""

    def __init__(
        self, path: Path | None, store: AdapterStore, publisher: Publisher, options: FollowOptions | None = None
    ) -> None:
        self._path = path
        self._store = store
        self._publisher = publisher
        self._options = options or FollowOptions()
        self._wake = asyncio.Event()
        self._problems: dict[str, str] = {}
        self._file_problem = ""
        self._wanted: list[Wanted] = []
        self.looked = asyncio.Event()
        """Set once every adapter of the file was tried."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Name -> why it is not there as the file says. Name "": of the file itself."""
        return {**({"": self._file_problem} if self._file_problem else {}), **self._problems}

    @property
    def wanted(self) -> Sequence[Wanted]:
        """As the file said last."""
        return self._wanted

    def wants(self, name: str) -> bool:
        """Whether the file has it."""
        return any(wanted.name == name for wanted in self._wanted)

    def look_again(self) -> None:
        """Something that is wanted is gone."""
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        if self._path is None:
            self.looked.set()
            return
        seen: object = None
        failures, due_s = 0, 0.0
        loop = asyncio.get_running_loop()
        while True:
            stamp = _stamp(self._path)
            is_due = bool(self.problems) and loop.time() >= due_s
            if stamp != seen or self._wake.is_set() or is_due:
                failures = failures + 1 if is_due and stamp == seen else 0
                seen = stamp
                self._wake.clear()
                await self._pass()
                self.looked.set()
                due_s = loop.time() + min(self._options.max_retry_s, self._options.retry_s * 2 ** min(failures, 16))
            try:
                async with asyncio.timeout(self._options.poll_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _pass(self) -> None:
        assert self._path is not None
        try:
            self._wanted = read_adapters(self._path)
            self._file_problem = ""
        except AdaptersFileProblem as problem:  # what was wanted last is wanted still
            self._file_problem = str(problem)
            _log.error("cannot read the adapters that are wanted", error=str(problem))
        names = {wanted.name for wanted in self._wanted}
        self._problems = {name: text for name, text in self._problems.items() if name in names}
        if not self._file_problem:
            await self._remove([name.name for name in self._store.names() if name.is_set and name.name not in names])
        async with asyncio.TaskGroup() as tasks:
            for wanted in self._wanted:
                tasks.create_task(self._publish(wanted))

    async def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                await self._publisher.remove(name)
            except OSError as error:
                self._problems[name] = f"it could not be removed: {error}"

    async def _publish(self, wanted: Wanted) -> None:
        try:
            await self._publisher.publish(wanted)
            self._problems.pop(wanted.name, None)
        except (AdapterRefused, NoRoom, NotKept, Damaged, ArtifactError, OSError) as error:
            self._problems[wanted.name] = str(error)
            _log.warning("could not publish", name=wanted.name, uri=wanted.uri, error=str(error))
        except Exception as error:  # whatever an adapter sets off, the others are followed on
            self._problems[wanted.name] = f"a bug, see the log: {type(error).__name__}"
            _log.exception("could not publish", name=wanted.name, uri=wanted.uri)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes with the file: on Kubernetes it is a link to a link, which moves."""
    try:
        found = os.stat(path)  # noqa: PTH116  # follows links
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_dev)
