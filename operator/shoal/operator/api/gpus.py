"""Memory of NVIDIA GPUs, by the label that their nodes have (nvidia.com/gpu.product, GPU feature discovery)."""

from __future__ import annotations

import re
from typing import Final

from shoal.operator.api.quantity import parse_quantity
from shoal.operator.api.spec import Resources

_SIZE: Final = re.compile(r"(?:^|-)(\d+)GB(?:-|$)")
_SLICE: Final = re.compile(r"-MIG-\d+g\.(\d+)gb")
# For names that do not say it. As in the names that do, a GB is 2^30 bytes, and CUDA can use up to 6% less than that.
_KNOWN_GB: Final = (
    ("GB300", 279),
    ("GB200", 186),
    ("B300", 270),
    ("B200", 180),
    ("H200", 141),
    ("H20", 96),
    ("H100-NVL", 94),
    ("H100", 80),
    ("H800", 80),
    ("A800", 80),
    ("L40S", 48),
    ("L40", 48),
    ("L20", 48),
    ("L4", 24),
    ("A40", 48),
    ("A30", 24),
    ("A10G", 24),
    ("A10", 24),
    ("A16", 16),
    ("T4", 16),
    ("RTX-6000-Ada-Generation", 48),
    ("RTX-PRO-6000", 96),
    ("RTX-A6000", 48),
    ("RTX-A5000", 24),
    ("GeForce-RTX-5090", 32),
    ("GeForce-RTX-4090", 24),
    ("GeForce-RTX-3090", 24),
)


def gpu_memory_bytes(resources: Resources) -> int | None:
    """Of one GPU: as given, or as known of the product; None when neither says it."""
    if resources.gpu_memory is not None:
        return parse_quantity(resources.gpu_memory)
    if resources.gpu_product is None:
        return None
    name = resources.gpu_product.removesuffix("-SHARED")
    # Of a GH200 the name says how much memory its CPU has.
    said = _SLICE.search(name) or (None if "GH200" in name else _SIZE.search(name))
    if said is not None:
        return int(said.group(1)) << 30
    padded = f"-{name}-"
    return next((size << 30 for known, size in _KNOWN_GB if f"-{known}-" in padded), None)
