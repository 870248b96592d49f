"""Memory of GPUs by their labels."""

from __future__ import annotations

import pytest

from shoal.operator.api.gpus import gpu_memory_bytes
from shoal.operator.api.spec import Resources


@pytest.mark.parametrize(
    ("product", "gigabytes"),
    [
        ("NVIDIA-H100-80GB-HBM3", 80),
        ("NVIDIA-H100-PCIe", 80),
        ("NVIDIA-H100-NVL", 94),
        ("NVIDIA-H200", 141),
        ("NVIDIA-H20", 96),
        ("NVIDIA-B200", 180),
        ("NVIDIA-A100-SXM4-40GB", 40),
        ("NVIDIA-A100-SXM4-80GB-SHARED", 80),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", 10),
        ("NVIDIA-L4", 24),
        ("NVIDIA-L40S", 48),
        ("NVIDIA-A10G", 24),
        ("Tesla-T4", 16),
        ("Tesla-V100-SXM2-32GB", 32),
        ("NVIDIA-GeForce-RTX-4090", 24),
        ("NVIDIA-GH200-480GB", None),
        ("NVIDIA-X9000", None),
    ],
)
def test_products_are_known(product: str, gigabytes: int | None) -> None:
    expected = None if gigabytes is None else gigabytes << 30
    assert gpu_memory_bytes(Resources(gpu_product=product)) == expected


def test_what_is_given_counts() -> None:
    assert gpu_memory_bytes(Resources(gpu_product="NVIDIA-L4", gpu_memory="20Gi")) == 20 << 30
    assert gpu_memory_bytes(Resources()) is None
