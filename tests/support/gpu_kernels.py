"""Runs layers on the GPU's kernels: interpreted, where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from shoal.model_worker.layers import attention, mlp, norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Layers called inside give tensors on a CPU to the GPU's kernels, too. Attention follows its plan."""
    from shoal.kernels.act_and_mul import triton_impl as gate
    from shoal.kernels.rms_norm import triton_impl as norms
    from shoal.kernels.rope import triton_impl as rope

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "rope_and_cache", rope.rope_and_cache)
        patch.setattr(norm, "rms_norm", norms.rms_norm)
        patch.setattr(norm, "add_rms_norm", norms.add_rms_norm)
        patch.setattr(mlp, "act_and_mul", gate.act_and_mul)
        yield
