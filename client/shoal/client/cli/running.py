"""Remembers which meshes run on this machine, so that `shoal chat` finds the one that `shoal up` started.

Each `shoal up` keeps a file in the runtime folder, with the endpoint, and holds a lock on it while it lives. The lock
goes with the process however it ends, so a file without one is a leftover and is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.client.cli.failures import CommandFailed

_PREFIX, _SUFFIX = "up-", ".json"
_MAX_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A mesh that `shoal up` keeps."""

    name: str
    endpoint: str
    pid: int
    kv_store: str = ""
    """host:port of its KV store; empty: it has none."""


def runtime_folder() -> Path:
    """SHOAL_RUNTIME_DIR, or a folder under XDG_RUNTIME_DIR, or one of this user's under the temporary folder."""
    if given := os.environ.get("SHOAL_RUNTIME_DIR"):
        return Path(given)
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "shoal"
    return Path(tempfile.gettempdir()) / f"shoal-run-{os.getuid()}"


@contextlib.contextmanager
def recorded(mesh: RunningMesh) -> Iterator[None]:
    """Others can find `mesh` while the block runs. Raises CommandFailed when the folder belongs to somebody else."""
    folder = runtime_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(folder):
        raise CommandFailed(f"{folder} belongs to another user; set SHOAL_RUNTIME_DIR to a folder of yours")
    path = folder / f"{_PREFIX}{mesh.pid}{_SUFFIX}"
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(msgspec.json.encode(mesh))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Leaves a folder that the user chose, and one that holds others' records."""
    if "SHOAL_RUNTIME_DIR" not in os.environ:
        with contextlib.suppress(OSError):
            folder.rmdir()


def find_running() -> list[RunningMesh]:
    """The meshes that run on this machine for this user, oldest process first. Removes leftovers."""
    folder = runtime_folder()
    if not folder.is_dir() or not _is_ours(folder):
        return []
    found = [mesh for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")) if (mesh := _read(path)) is not None]
    return sorted(found, key=lambda mesh: mesh.pid)


def _read(path: Path) -> RunningMesh | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError), path.open("rb") as file:
        if _is_locked(file.fileno()):
            return msgspec.json.decode(file.read(_MAX_BYTES), type=RunningMesh)
        path.unlink(missing_ok=True)
    return None


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_ours(folder: Path) -> bool:
    return folder.stat().st_uid == os.getuid()
