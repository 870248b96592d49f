"""CRC32C of memory, alone or of what a copy moves: the checksum of every KV block.

Natively a copy with its checksum is one pass over memory, about as fast as a copy without. Without a C compiler the
bytes are copied by `memoryview` and summed by google-crc32c. Addresses and sizes are the caller's responsibility in
the functions that take addresses; those that take buffers check them.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shoal.native import Library, NativeBuildError, build

Buffer = bytes | bytearray | memoryview
_LIBRARY: Final = Library("shoal-checksum", "native", Path(__file__).resolve().parent, ("crc32c.c",))
_CHECK: Final = (b"123456789", 0xE3069283)  # RFC 3720 B.4 and every other table of CRCs
STREAM_BYTES: Final = 1 << 18
"""Copies of at least this size pass the cache by: they are larger than the caches they would displace."""
_logger = logging.getLogger(__name__)


def crc32c(data: Buffer) -> int:
    """The checksum of a contiguous buffer."""
    array = np.frombuffer(data, np.uint8)
    return crc32c_at(array.ctypes.data, array.nbytes) if array.nbytes else 0


def copy_crc32c(into: Buffer, data: Buffer) -> int:
    """Copies `data` to `into`, of the same size, and returns the checksum of what was written. Raises ValueError."""
    source, target = np.frombuffer(data, np.uint8), np.frombuffer(into, np.uint8)
    if source.nbytes != target.nbytes or not target.flags.writeable:
        raise ValueError(f"cannot copy {source.nbytes} bytes into {target.nbytes}, or the target is read-only")
    return copy_crc32c_at(target.ctypes.data, source.ctypes.data, source.nbytes) if source.nbytes else 0


def crc32c_at(address: int, num_bytes: int) -> int:
    """The checksum of memory that the caller keeps alive."""
    native = _native()
    if native is not None:
        return native.one(0, None, address, num_bytes, 0)
    return int(google_crc32c.value(_array_at(address, num_bytes)))


def crc32c_each(addresses: NDArray[np.uint64], num_bytes: int) -> list[int]:
    """The checksums of many pieces of memory of one size, which the caller keeps alive. The interpreter is free
    meanwhile: whoever asks for each by itself waits for it after each, up to 5 ms while another thread computes."""
    native = _native()
    if native is None:
        return [crc32c_at(address, num_bytes) for address in addresses.tolist()]
    sums = np.empty(len(addresses), np.uint32)
    native.each(np.ascontiguousarray(addresses).ctypes.data, len(addresses), num_bytes, sums.ctypes.data)
    return sums.tolist()


def copy_crc32c_at(into: int, address: int, num_bytes: int) -> int:
    """Copies between memory that the caller keeps alive, which does not overlap; the checksum of what was written."""
    native = _native()
    if native is not None:
        return native.one(0, into, address, num_bytes, num_bytes >= STREAM_BYTES)
    ctypes.memmove(into, address, num_bytes)
    return int(google_crc32c.value(_array_at(into, num_bytes)))


def _array_at(address: int, num_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


class _Native(NamedTuple):
    """Functions of crc32c.c. They give up the GIL: 2 MiB take 100 us."""

    one: Callable[..., int]
    each: Callable[..., None]


@functools.cache
def _native() -> _Native | None:
    """Compiled on the first call, checked against google-crc32c; None without a compiler."""
    try:
        library = ctypes.CDLL(str(build(_LIBRARY)))
        native = _Native(library.shoal_crc32c, library.shoal_crc32c_each)
    except (NativeBuildError, OSError, AttributeError) as error:
        _logger.warning("KV blocks are copied and summed in two passes: %s", error)
        return None
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    library.shoal_crc32c.argtypes, library.shoal_crc32c.restype = (u32, pointer, pointer, u64, ctypes.c_int), u32
    library.shoal_crc32c_each.argtypes, library.shoal_crc32c_each.restype = (pointer, u64, u64, pointer), None
    text, expected = _CHECK
    sample = text * 1000  # passes through the vector loop and its remainder
    right = native.one(0, None, text, len(text), 0) == expected
    if right and native.one(0, None, sample, len(sample), 0) == google_crc32c.value(sample):
        return native
    _logger.warning("KV blocks are copied and summed in two passes: the native checksum computes something else")
    return None
