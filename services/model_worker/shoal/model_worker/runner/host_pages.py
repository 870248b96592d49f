"""Memory of another process that a GPU reads and writes by itself, once its pages are registered."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

_MAPPED: Final = 0x02  # cudaHostRegisterMapped: kernels read it as well
_READ_ONLY: Final = 0x08  # cudaHostRegisterReadOnly
_logger = logging.getLogger(__name__)


class Mapping(Protocol):
    """Shared memory, mapped as long as the object lives."""

    address: int
    num_bytes: int
    row_bytes: int


class Rows(NamedTuple):
    """A mapping's bytes, cut. Valid while the mapping lives."""

    tensors: Sequence[Tensor]
    """uint8 [row_bytes] each."""
    is_direct: bool
    """Whether the GPU reaches them itself. It does not where the driver cannot register the mapping."""


class HostPages:
    """Registers mappings on first use, 60 ms a GiB on an H100's host, until they go. Used by one thread at a time."""

    def __init__(self, device: torch.device, *, read_only: bool, direct: bool = True) -> None:
        """direct: False, and nothing is registered."""
        self._device, self._direct = device, direct
        self._flags = _MAPPED | (_READ_ONLY if read_only else 0)
        self._rows: weakref.WeakKeyDictionary[Mapping, Rows] = weakref.WeakKeyDictionary()

    def rows(self, mapping: Mapping) -> Rows:
        """Of `row_bytes` each."""
        rows = self._rows.get(mapping)
        if rows is None:
            is_direct = self._direct and (self._device.type != "cuda" or self._register(mapping))
            rows = self._rows[mapping] = Rows(_cut(mapping), is_direct)
        return rows

    def _register(self, mapping: Mapping) -> bool:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device):
            code = int(runtime.cudaHostRegister(mapping.address, mapping.num_bytes, self._flags))
        if code:
            _logger.warning("the GPU cannot read the KV store's memory itself (CUDA error %d): copies are staged", code)
            return False
        # Before the mapping goes, or its address could come to stand for other memory. Not at exit: CUDA is gone then.
        weakref.finalize(mapping, runtime.cudaHostUnregister, mapping.address).atexit = False
        return True


def _cut(mapping: Mapping) -> Sequence[Tensor]:
    num_rows = mapping.num_bytes // mapping.row_bytes
    array = (ctypes.c_uint8 * (num_rows * mapping.row_bytes)).from_address(mapping.address)
    return torch.frombuffer(array, dtype=torch.uint8).view(num_rows, mapping.row_bytes).unbind()
