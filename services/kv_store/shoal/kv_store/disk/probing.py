"""The first calls to a disk, and small I/O that tells whether it works."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from shoal.kv_store.disk.errors import DiskError
from shoal.kv_store.disk.files import Files, read_all, write_all
from shoal.kv_store.disk.layout import ALIGNMENT
from shoal.kv_store.disk.pool import Buffer, IoContext, IoPool
from shoal.kv_store.disk.volume import Volume

PROBE_NAME: Final = "probe"
_LOCK_NAME: Final = "lock"


def lock_folder(files: Files, pool: IoPool, folder: Path) -> int:
    """Makes `folder` and locks it for this process; the descriptor that holds the lock.

    Raises OSError, BlockingIOError where another log has it, or DiskError when the disk does not answer.
    """

    def lock(context: IoContext) -> int:
        files.make_folder(folder)
        lock_fd = files.lock(folder / _LOCK_NAME)
        if context.is_abandoned:
            files.close(lock_fd)
        return lock_fd

    return pool.submit(lock, "read").result()


def probe_direct(files: Files, folder: Path) -> bool:
    """Whether the file system takes O_DIRECT. Raises OSError when it takes nothing."""
    path = folder / PROBE_NAME
    for direct in (True, False):
        try:
            fd = files.open(path, create=True, direct=direct)
            try:
                write_all(files, fd, Buffer(ALIGNMENT).view, 0, ALIGNMENT)
            finally:
                files.close(fd)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
        else:
            return direct
    raise AssertionError("unreachable")


def probe(volume: Volume) -> None:
    """Writes, syncs and reads back 4 KiB where a side is out of service; puts it back in service if that works."""
    health = volume.health
    path = volume.segments.folder / PROBE_NAME
    token = os.urandom(16)

    def write(context: IoContext) -> None:
        view = context.buffer(ALIGNMENT).view[:ALIGNMENT]
        view[:] = token.ljust(ALIGNMENT, b"\0")
        fd = volume.files.open(path, create=True, direct=volume.direct)
        try:
            write_all(volume.files, fd, view, 0, ALIGNMENT)
            volume.files.fdatasync(fd)
        finally:
            volume.files.close(fd)

    def read(context: IoContext) -> bytes:
        view = context.buffer(ALIGNMENT).view[:ALIGNMENT]
        fd = volume.files.open(path, direct=volume.direct)
        try:
            read_all(volume.files, fd, view, 0, ALIGNMENT)
        finally:
            volume.files.close(fd)
        return bytes(view[:16])

    write_error, read_error = "", ""
    try:
        volume.pool.submit(write, "write").result()
    except (DiskError, OSError) as error:
        write_error = f"a probe failed: {error}"
    try:
        found = volume.pool.submit(read, "read").result()
        if not write_error and found != token:
            read_error = "a probe read something else than it wrote"
    except (DiskError, OSError, EOFError) as error:
        read_error = f"a probe failed: {error}"
    health.writes.probed(write_error or read_error)
    health.reads.probed(read_error)
