"""The gated feed-forward."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.act_and_mul import Activation, act_and_mul
from shoal.model_worker.layers.linear import Linear


class GatedMLP:
    """down(activation(gate(x)) * up(x)), with gate and up as one product."""

    def __init__(self, gate_up_proj: Linear, down_proj: Linear, activation: Activation) -> None:
        """gate_up_proj yields gate and up side by side."""
        self.gate_up_proj, self.down_proj, self.activation = gate_up_proj, down_proj, activation

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden]; returns the same shape."""
        return self.down_proj(act_and_mul(self.gate_up_proj(x), self.activation))
