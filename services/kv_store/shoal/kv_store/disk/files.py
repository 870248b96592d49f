"""Every system call of the tier, behind one small class, so that tests can fail, cut, delay or kill at each of them.

Errors are `OSError` as the kernel gives them. `pwritev` and `preadv` may do less than asked; callers go on from there.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path


class Files:
    """The real file system. Subclasses in tests override single calls."""

    def make_folder(self, path: Path) -> None:
        """Makes the folder and its parents, mode 0700: blocks are tenants' data."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self, folder: Path) -> list[str]:
        """Names in `folder`."""
        return [path.name for path in folder.iterdir()]

    def lock(self, path: Path) -> int:
        """A descriptor that holds the lock `path` until it is closed or the process dies.

        Raises BlockingIOError if another process holds it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def open(self, path: Path, *, create: bool = False, direct: bool = False) -> int:
        """A descriptor for reading and writing. `direct` raises OSError(EINVAL) where O_DIRECT is refused."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0) | (os.O_DIRECT if direct else 0)
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        """Closes the descriptor."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """Length of the file in bytes."""
        return os.fstat(fd).st_size

    def allocate(self, fd: int, num_bytes: int) -> None:
        """Reserves the blocks of the first `num_bytes`; a sparse file where the file system cannot."""
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            os.ftruncate(fd, num_bytes)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Bytes written."""
        return os.pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Bytes read; less than asked at the end of the file."""
        return os.preadv(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        """Returns when the device says that everything written through any descriptor of the file is on it."""
        os.fdatasync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Replaces `target` atomically."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Removes the file."""
        path.unlink()

    def sync_folder(self, path: Path) -> None:
        """Returns when names made, replaced and removed in `path` are on the device."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_all(files: Files, fd: int, data: memoryview, offset: int, alignment: int = 1) -> None:
    """Writes all of `data` however short single writes are, going on at a multiple of `alignment` bytes.

    Raises OSError(EIO) when two writes in a row bring nothing.
    """
    done, idle = 0, 0
    while done < len(data):
        num_written = files.pwritev(fd, (data[done:],), offset + done)
        num_aligned = num_written if done + num_written >= len(data) else num_written // alignment * alignment
        idle = 0 if num_aligned else idle + 1
        if idle == 2:
            raise OSError(errno.EIO, f"a write at byte {offset + done} of {len(data) - done} bytes wrote nothing")
        done += num_aligned


def read_all(files: Files, fd: int, into: memoryview, offset: int, alignment: int = 1) -> None:
    """Fills `into`. Raises EOFError when the file ends before."""
    done = 0
    while done < len(into):
        num_read = files.preadv(fd, (into[done:],), offset + done)
        num_aligned = num_read if done + num_read >= len(into) else num_read // alignment * alignment
        if not num_aligned:
            raise EOFError(f"the file ends at byte {offset + done + num_read}, {len(into) - done - num_read} too early")
        done += num_aligned
