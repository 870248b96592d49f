"""Memory of another process that a GPU reads and writes by itself, once its pages are registered."""

from __future__ import annotations

import logging
import weakref
from typing import Final, Protocol

import torch

_READ_ONLY: Final = 0x08  # cudaHostRegisterReadOnly
_logger = logging.getLogger(__name__)


class Mapping(Protocol):
    """Shared memory, mapped as long as the object lives."""

    address: int
    num_bytes: int


class HostPages:
    """Registers mappings on first use, 60 ms a GiB on an H100's host, until they go. Used by one thread at a time."""

    def __init__(self, device: torch.device, *, read_only: bool, direct: bool = True) -> None:
        """direct: False, and nothing is registered."""
        self._device, self._direct = device, direct
        self._flags = _READ_ONLY if read_only else 0
        self._reached: weakref.WeakKeyDictionary[Mapping, bool] = weakref.WeakKeyDictionary()

    def reach(self, mapping: Mapping) -> bool:
        """Whether the GPU reaches a mapping itself. It does not where the driver cannot register it."""
        is_direct = self._reached.get(mapping)
        if is_direct is None:
            is_direct = self._direct and (self._device.type != "cuda" or self._register(mapping))
            self._reached[mapping] = is_direct
        return is_direct

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
