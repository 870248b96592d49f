"""RMSNorm of query and key heads before they are rotated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HeadNorms:
    """A layer's query and key norms (Qwen 3, Gemma 3). Weights of any dtype are kept in float32, which is exact."""

    q_weight: Tensor
    """[head_dim]"""
    k_weight: Tensor
    """[head_dim]"""
    eps: float

    def __post_init__(self) -> None:
        if self.q_weight.dim() != 1 or self.q_weight.shape != self.k_weight.shape:
            raise ValueError(
                f"q_weight and k_weight must both be [head_dim], not {tuple(self.q_weight.shape)} and "
                f"{tuple(self.k_weight.shape)}"
            )
        for name in ("q_weight", "k_weight"):
            object.__setattr__(self, name, getattr(self, name).to(torch.float32).contiguous())
