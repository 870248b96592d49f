"""Files that fail, shorten, block or kill at chosen calls, and blocks whose content follows from a number."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shoal.kv_store.disk import Location, LogOptions, Record, RecordMetadata, SegmentLog
from shoal.kv_store.disk.files import Files

SEGMENT_BYTES = 1 << 15
CAPACITY_BYTES = 2 << 20
OPTIONS = LogOptions(num_threads=2, min_payload_bytes=4096, checkpoint_interval_s=3600, max_queued=256)


def key(number: int) -> bytes:
    """The key of block `number`."""
    return hashlib.sha256(b"key %d" % number).digest()[:16]


def payload(number: int, num_bytes: int | None = None) -> bytes:
    """The bytes of block `number`: 200 bytes to 11 KiB unless said."""
    size = 200 + number * 937 % 11_000 if num_bytes is None else num_bytes
    return (hashlib.sha256(b"payload %d" % number).digest() * (size // 32 + 1))[:size]


def record(number: int, num_bytes: int | None = None, parent: int | None = None) -> Record:
    """Block `number`, in a chain after `parent`, by default after a block that there is not."""
    data = payload(number, num_bytes)
    parent_key = bytes(16) if parent is None else key(parent)
    return Record(RecordMetadata(key(number), parent_key, b"fingerprint", f"tenant-{number % 3}", len(data)), data)


def read(log: SegmentLog, number: int, num_bytes: int | None = None) -> bytes:
    """The block's bytes; raises what the read's future raises."""
    data = bytearray(len(payload(number, num_bytes)))
    log.read(log.find(key(number)) or Location(key(number), 0, 0), memoryview(data)).result(timeout=10)
    return bytes(data)


def write(log: SegmentLog, number: int, **settings: Any) -> None:
    """Writes and waits."""
    log.write(record(number, **settings)).result(timeout=10)


def disk_bytes(folder: Path) -> int:
    """What the folder's files take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


class FaultyFiles(Files):
    """Calls go through `on_call(name, argument)` first, which may raise, block or kill.

    `limit` shortens a write or read to so many bytes.
    """

    def __init__(self) -> None:
        self.on_call: Callable[[str, object], None] = lambda name, argument: None
        self.limit: Callable[[str, int], int] = lambda name, num_bytes: num_bytes
        self.refuses_direct = False

    def fail(self, name: str, error_number: int, times: int = 1_000_000) -> None:
        """The next `times` calls of `name` raise that error."""
        remaining = [times]

        def raise_error(called: str, argument: object) -> None:
            if called == name and remaining[0] > 0:
                remaining[0] -= 1
                raise OSError(error_number, os.strerror(error_number))

        self.on_call = raise_error

    def heal(self) -> None:
        """No more faults."""
        self.on_call = lambda name, argument: None

    def block(self, name: str, times: int = 1_000_000) -> threading.Event:
        """The next `times` calls of `name` wait for the event, at most 30 s."""
        released, remaining = threading.Event(), [times]

        def wait(called: str, argument: object) -> None:
            if called == name and remaining[0] > 0:
                remaining[0] -= 1
                released.wait(30)

        self.on_call = wait
        return released

    def open(self, path: Path, *, create: bool = False, direct: bool = False) -> int:
        self.on_call("create" if create and not path.exists() else "open", path)
        if direct and self.refuses_direct:
            raise OSError(22, "Invalid argument")
        return super().open(path, create=create, direct=direct)

    def lock(self, path: Path) -> int:
        self.on_call("lock", path)
        return super().lock(path)

    def allocate(self, fd: int, num_bytes: int) -> None:
        self.on_call("allocate", fd)
        super().allocate(fd, num_bytes)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.on_call("pwritev", offset)
        return super().pwritev(fd, self._shortened("pwritev", buffers), offset)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.on_call("preadv", offset)
        return super().preadv(fd, self._shortened("preadv", buffers), offset)

    def fdatasync(self, fd: int) -> None:
        self.on_call("fdatasync", fd)
        super().fdatasync(fd)

    def rename(self, source: Path, target: Path) -> None:
        self.on_call("rename", target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.on_call("unlink", path)
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self.on_call("sync_folder", path)
        super().sync_folder(path)

    def _shortened(self, name: str, buffers: Sequence[memoryview]) -> list[memoryview]:
        num_bytes = self.limit(name, sum(len(buffer) for buffer in buffers))
        shortened = []
        for buffer in buffers:
            shortened.append(buffer[:num_bytes])
            num_bytes -= len(shortened[-1])
        return shortened


class KillingFiles(FaultyFiles):
    """Kills the process with SIGKILL at the `kill_at`-th call that changes something: before, in its midst, after."""

    def __init__(self, kill_at: int, moment: str) -> None:
        super().__init__()
        self._remaining = kill_at
        self._moment = moment
        self._lock = threading.Lock()
        self.on_call = self._count

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self._remaining == 1 and self._moment == "midst":
            whole = sum(len(buffer) for buffer in buffers)
            self.limit = lambda name, num_bytes: whole // 2 // 512 * 512
            self._remaining = 10**9
            super().pwritev(fd, buffers, offset)
            _die()
        return super().pwritev(fd, buffers, offset)

    def _count(self, name: str, argument: object) -> None:
        if name in ("preadv", "open", "lock"):
            return
        with self._lock:
            self._remaining -= 1
            if self._remaining == (0 if self._moment != "after" else -1):
                _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()
