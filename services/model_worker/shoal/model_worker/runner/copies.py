"""Many copies between the host's memory and a GPU's in one call of CUDA's runtime.

One by one from Python they take longer to launch than a link of 54 GB/s takes to make them: 5 us each by torch, while
256 KiB take as long. In one call of `cudaMemcpyBatchAsync` (CUDA 13) it is 1 us, without the interpreter, and copies of
128 KiB reach the rate of large ones. Unlike a kernel that reads the host's memory (49 GB/s) copy engines take no
processors from steps: matrix products that took 2.6 ms alone took 3.1 beside such a kernel, and 2.6 beside copies.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Addresses = NDArray[np.uint64]
_BATCHES_SINCE: Final = 13_000
"""Version of the runtime; 12.8 has the call with another signature."""
_ANY_DIRECTION: Final = 4  # cudaMemcpyDefault


class Copies(Protocol):
    """Memory is the caller's to keep until the copies have ended."""

    def batch(self, targets: Addresses, sources: Addresses, num_bytes: int) -> None:
        """Copies so many bytes from each address to the one beside it, on the current stream. Memory of the host has to
        be registered, and targets must not overlap. Raises RuntimeError."""

    def each(self, targets: Addresses, sources: Addresses, num_bytes: int) -> None:
        """The same of any memory, one after the other."""


def make_copies(device: torch.device) -> Copies:
    """Those of a device."""
    return _CudaCopies() if device.type == "cuda" else _HostCopies()


class _HostCopies:
    def batch(self, targets: Addresses, sources: Addresses, num_bytes: int) -> None:
        for target, source in zip(targets.tolist(), sources.tolist(), strict=True):
            ctypes.memmove(target, source, num_bytes)

    each = batch


class _Location(ctypes.Structure):
    """struct cudaMemLocation."""

    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """struct cudaMemcpyAttributes."""

    _fields_ = (
        ("src_access_order", ctypes.c_int),
        ("src_hint", _Location),
        ("dst_hint", _Location),
        ("flags", ctypes.c_uint),
    )


class _CudaCopies:
    def __init__(self) -> None:
        self._runtime: Any = ctypes.CDLL(f"libcudart.so.{str(torch.version.cuda).partition('.')[0]}")  # torch's own
        self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
        version = ctypes.c_int()
        self._check(self._runtime.cudaRuntimeGetVersion(ctypes.byref(version)))
        self._has_batches = version.value >= _BATCHES_SINCE
        self._attributes = _Attributes(src_access_order=1)  # cudaMemcpySrcAccessOrderStream

    def batch(self, targets: Addresses, sources: Addresses, num_bytes: int) -> None:
        if not self._has_batches:
            self.each(targets, sources, num_bytes)
            return
        num = len(targets)
        sizes, first = np.full(num, num_bytes, np.uint64), np.zeros(1, np.uint64)
        self._check(
            self._runtime.cudaMemcpyBatchAsync(
                targets.ctypes.data_as(ctypes.c_void_p),
                sources.ctypes.data_as(ctypes.c_void_p),
                sizes.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_size_t(num),
                ctypes.byref(self._attributes),
                first.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_size_t(1),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            )
        )

    def each(self, targets: Addresses, sources: Addresses, num_bytes: int) -> None:
        stream, size = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream), ctypes.c_size_t(num_bytes)
        for target, source in zip(targets.tolist(), sources.tolist(), strict=True):
            into, of = ctypes.c_void_p(target), ctypes.c_void_p(source)
            self._check(self._runtime.cudaMemcpyAsync(into, of, size, _ANY_DIRECTION, stream))

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"CUDA copies no KV blocks: {self._runtime.cudaGetErrorString(code).decode()}")
