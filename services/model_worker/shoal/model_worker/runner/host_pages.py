"""Memory of another process that a GPU reads and writes by itself, once its pages are registered."""

from __future__ import annotations

import ctypes
import logging
import weakref
from typing import Final, Protocol

import torch
from torch import Tensor

_READ_ONLY: Final = 0x08  # cudaHostRegisterReadOnly
_logger = logging.getLogger(__name__)


class Mapping(Protocol):
    """Shared memory, mapped as long as the object lives."""

    address: int
    num_bytes: int


class HostPages:
    """Registers mappings on first use, 60 ms a GiB on an H100's host, until they go. Used by one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: weakref.WeakKeyDictionary[Mapping, Tensor | None] = weakref.WeakKeyDictionary()

    def tensor(self, mapping: Mapping, *, read_only: bool) -> Tensor | None:
        """The mapping's bytes, uint8 [num_bytes], valid while it lives; None if the driver cannot register it."""
        if mapping not in self._tensors:
            registered = self._device.type != "cuda" or self._register(mapping, read_only)
            self._tensors[mapping] = view_of(mapping) if registered else None
        return self._tensors[mapping]

    def _register(self, mapping: Mapping, read_only: bool) -> bool:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device):
            code = int(runtime.cudaHostRegister(mapping.address, mapping.num_bytes, _READ_ONLY if read_only else 0))
        if code:
            _logger.warning("the GPU cannot read the KV store's memory itself (CUDA error %d): copies are staged", code)
            return False
        # Before the mapping goes, or its address could come to stand for other memory. Not at exit: CUDA is gone then.
        weakref.finalize(mapping, runtime.cudaHostUnregister, mapping.address).atexit = False
        return True


def view_of(mapping: Mapping) -> Tensor:
    """A mapping's bytes, uint8 [num_bytes], valid while it lives."""
    array = (ctypes.c_uint8 * mapping.num_bytes).from_address(mapping.address)
    return torch.frombuffer(array, dtype=torch.uint8)
