"""Programmatic dependent launch: a kernel starts while the one before it ends, and waits inside for its results.

Every kernel launched with `launch_options` calls `await_previous` before it reads what another kernel wrote, or writes
anything; only weights and the step's metadata may be read before. The next kernel is let in after the wait, not before:
then all kernels but the previous one have ended when a program starts. Hopper and later; else kernels run in turn.

A decoding step of Llama-3.1-8B on an H100 takes 5.28, 5.67, 5.98 ms instead of 5.50, 5.89, 6.20 for 1, 8, 32 sequences.
Fetching weights into the second-level cache while waiting gained nothing more, and lost 0.2 ms for one sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def launch_options(device: torch.device) -> Mapping[str, bool]:
    """What to launch a kernel with that takes OVERLAPS."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return MappingProxyType({"OVERLAPS": True, "launch_pdl": True})
    return MappingProxyType({"OVERLAPS": False})


@triton.jit
def await_previous(OVERLAPS: tl.constexpr):
    """Waits until the kernel before has ended and all that it wrote can be read; then lets the next one in."""
    if OVERLAPS:
        gdc_wait()
        gdc_launch_dependents()
