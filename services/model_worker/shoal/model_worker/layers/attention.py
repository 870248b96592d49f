"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.paged_attention import AttentionOptions, paged_attention
from shoal.kernels.rope import HeadNorms, rope_and_cache
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.layers.linear import Linear
from shoal.model_worker.layers.norm import ProjectionNorms


class Attention:
    """One layer's attention. Sizes come with the batch's attention plan."""

    def __init__(
        self,
        qkv_proj: Linear,
        o_proj: Linear,
        rotary_table: Tensor,
        layer_index: int,
        options: AttentionOptions,
        *,
        head_norms: HeadNorms | None = None,
        projection_norms: ProjectionNorms | None = None,
    ) -> None:
        """qkv_proj yields q, k and v side by side; rotary_table and options may be shared by layers.

        q and k may be normalised before they are rotated: head by head, or each as a whole.
        """
        self.qkv_proj, self.o_proj, self.options = qkv_proj, o_proj, options
        self._rotary_table, self._layer_index = rotary_table, layer_index
        self._head_norms, self._projection_norms = head_norms, projection_norms

    @property
    def normalises(self) -> bool:
        """Whether q and k are normalised."""
        return self._head_norms is not None or self._projection_norms is not None

    def __call__(self, x: Tensor, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        """x: [T, hidden]. Writes the tokens' KV to `kv_cache` (of all layers), then attends."""
        qkv = self.qkv_proj(x)
        if self._projection_norms is not None:
            qkv = self._projection_norms(qkv)
        shape = batch.attention.shape
        layer_cache = kv_cache.select(1, self._layer_index)
        rope_and_cache(
            qkv,
            self._rotary_table,
            batch.positions,
            batch.slot_mapping,
            layer_cache,
            shape.layout,
            shape.num_heads,
            self._head_norms,
        )
        return self.o_proj(paged_attention(qkv, layer_cache, batch.attention, self.options))
