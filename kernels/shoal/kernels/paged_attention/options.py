"""What attention may do differently from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOptions:
    """One layer's attention. Compared by identity: tensors have no plain equality."""

    scale: float
    """Factor of q . k, usually head_dim ** -0.5."""
    sliding_window: int | None = None
    """A token sees itself and this many minus one before it; None: all."""
    soft_cap: float | None = None
    """Scaled scores become soft_cap * tanh(scores / soft_cap) (Gemma 2)."""
    sinks: Tensor | None = None
    """[num_heads] float32, on the device of the cache: logits that join each row's softmax denominator without a value
    (gpt-oss)."""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, not {self.scale}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, not {self.sliding_window}")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"soft_cap must be above 0, not {self.soft_cap}")
        if self.sinks is not None and (
            self.sinks.dtype != torch.float32 or self.sinks.dim() != 1 or not self.sinks.is_contiguous()
        ):
            raise ValueError(f"sinks must be contiguous float32 [num_heads], not {self.sinks.dtype}")

    @property
    def is_plain(self) -> bool:
        """Whether the softmax is the usual one, without soft cap and sinks."""
        return self.soft_cap is None and self.sinks is None
