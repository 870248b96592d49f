"""Attention and feed-forward around the residual stream, with norms wherever a family has them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shoal.kernels import decoder as native
from shoal.model_worker.layers.attention import Attention
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.layers.mlp import GatedMLP
from shoal.model_worker.layers.norm import RMSNorm


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """Of what attention and feed-forward read, and of what they add to the residual stream. None: no norm there."""

    before_attention: RMSNorm | None = None
    after_attention: RMSNorm | None = None
    before_mlp: RMSNorm | None = None
    after_mlp: RMSNorm | None = None


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer. What it adds to the residual stream is returned; whoever reads the stream next adds it first."""

    attention: Attention
    mlp: GatedMLP
    norms: LayerNorms

    def attend(self, x: Tensor | None, residual: Tensor, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        """x: [T, hidden], what is still to be added to `residual` [T, hidden] (in place), or None. Returns the next."""
        x = self.attention(_enter(x, residual, self.norms.before_attention), batch, kv_cache)
        return x if self.norms.after_attention is None else self.norms.after_attention(x)

    def feed_forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """As `attend`."""
        x = self.mlp(_enter(x, residual, self.norms.before_mlp))
        return x if self.norms.after_mlp is None else self.norms.after_mlp(x)

    def native_parameters(self) -> native.DecoderLayer | None:
        """For the native call that runs all layers at once; None if it does not know this build of layer."""
        attention, mlp, norms = self.attention, self.mlp, self.norms
        if norms.before_attention is None or norms.before_mlp is None:
            return None
        if norms.after_attention or norms.after_mlp or attention.normalises or mlp.activation != "silu":
            return None
        return native.DecoderLayer(
            norms.before_attention.weight,
            norms.before_mlp.weight,
            attention.qkv_proj.weight,
            attention.o_proj.weight,
            mlp.gate_up_proj.weight,
            mlp.down_proj.weight,
            attention.qkv_proj.bias,
            attention.o_proj.bias,
            mlp.gate_up_proj.bias,
            mlp.down_proj.bias,
        )


def _enter(x: Tensor | None, residual: Tensor, norm: RMSNorm | None) -> Tensor:
    """Adds x to the residual stream; returns what the norm makes of the stream, or the stream itself."""
    if norm is None:
        return residual if x is None else residual.add_(x)
    return norm(residual) if x is None else norm.add(x, residual)
