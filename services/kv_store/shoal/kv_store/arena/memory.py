"""Shared memory in sealed files without a name."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
from typing import Final, Literal

HugePages = Literal["off", "transparent", "reserved"]
PAGE_BYTES: Final = mmap.PAGESIZE
HUGE_PAGE_BYTES: Final = 2 << 20
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 1, 2, 4, 16  # linux/fcntl.h; Python 3.11 lacks the last
_F_ADD_SEALS: Final = 1033
_MADV_POPULATE_WRITE: Final = 23  # linux/mman.h, since Linux 5.14


class SharedMemory:
    """A memfd and this process's writable mapping of it, until `close`. Once populated, touching it cannot fail."""

    def __init__(
        self, name: str, num_bytes: int, *, huge_pages: HugePages = "off", readers_only: bool, populate: bool = True
    ) -> None:
        """`readers_only`: nobody can map or write it for writing from here on. Raises MemoryError when memory is short.

        With `huge_pages` "reserved" the size is a multiple of 2 MiB, and pages come from the kernel's pool. Without
        `populate` pages come as they are touched, for memory that is mostly never used.
        """
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if huge_pages == "reserved":
            flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
        self.num_bytes = num_bytes
        self.fd = -1
        try:
            self.fd = os.memfd_create(f"shoal-kv-{name}", flags)
            os.ftruncate(self.fd, num_bytes)
            self.mapping = mmap.mmap(self.fd, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            if populate:
                self._populate(huge_pages)
        except OSError as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise MemoryError(f"cannot have {num_bytes} bytes of shared memory: {error.strerror}") from error
        seals = _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW | (_SEAL_FUTURE_WRITE if readers_only else 0)
        fcntl.fcntl(self.fd, _F_ADD_SEALS, seals)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))

    def _populate(self, huge_pages: HugePages) -> None:
        if huge_pages == "transparent":
            with contextlib.suppress(OSError):  # kernels without them refuse
                self.mapping.madvise(mmap.MADV_HUGEPAGE)
        try:
            self.mapping.madvise(_MADV_POPULATE_WRITE)
        except OSError as error:
            if error.errno != 22:  # EINVAL: an older kernel, which gives pages as they are touched
                raise

    def close(self) -> None:
        """Gives the descriptor and the mapping back. Memory is free once no client maps it either."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            with contextlib.suppress(BufferError):  # whoever still views it keeps it mapped
                self.mapping.close()


def round_up(num_bytes: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-num_bytes // step) * step
