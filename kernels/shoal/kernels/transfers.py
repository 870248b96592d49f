"""Copies between host and device that nobody waits for. On a CPU, where tests run the GPU's kernels, plain copies."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Moment(Protocol):
    """A point in the device's work."""

    def record(self) -> None:
        """Moves it behind everything that is queued."""

    def synchronize(self) -> None:
        """Waits for it."""


class _Now:
    """On a CPU everything has happened when a call returns."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def make_moment(device: torch.device) -> Moment:
    """One that can be recorded again and again."""
    return torch.cuda.Event() if device.type == "cuda" else _Now()  # type: ignore[no-untyped-call]


def staging(size: int, device: torch.device) -> Tensor:
    """[size] int32 on the host, uninitialised, that the device can copy from and to while the host goes on."""
    return torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda")


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device, through pinned memory and without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()


def send(pinned: Tensor, target: Tensor) -> None:
    """Copies pinned memory of the host to the device by a kernel, for sizes that are multiples of 16 bytes.

    A copy of more than 16 KiB waits until the device's copy engine has made all copies that were launched before it, in
    whatever stream: 38 ms behind 2 GiB of KV blocks on an H100, where a kernel takes 0.1.
    """
    if target.device.type != "cuda":
        target.copy_(pinned)
        return
    from shoal.kernels.block_copy import triton_impl

    triton_impl.copy_blocks(
        pinned.view(1, -1), target.view(1, -1), None, torch.zeros(1, dtype=torch.int32, device=target.device)
    )
