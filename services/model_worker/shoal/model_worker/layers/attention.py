"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.paged_attention import AttentionOptions, paged_attention
from shoal.kernels.rope import rope_and_cache
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.layers.linear import Linear


class Attention:
    """One layer's attention. Sizes come with the batch's attention plan."""

    def __init__(
        self, qkv_proj: Linear, o_proj: Linear, rotary_table: Tensor, layer_index: int, options: AttentionOptions
    ) -> None:
        """qkv_proj yields q, k and v side by side; rotary_table and options may be shared by layers."""
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self._rotary_table, self._layer_index, self._options = rotary_table, layer_index, options

    def __call__(self, x: Tensor, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        """x: [T, hidden]. Writes the tokens' KV to `kv_cache` (of all layers), then attends."""
        qkv = self.qkv_proj(x)
        shape = batch.attention.shape
        layer_cache = kv_cache.select(1, self._layer_index)
        rope_and_cache(
            qkv, self._rotary_table, batch.positions, batch.slot_mapping, layer_cache, shape.layout, shape.num_heads
        )
        return self.o_proj(paged_attention(qkv, layer_cache, batch.attention, self._options))
