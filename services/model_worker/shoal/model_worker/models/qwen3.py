"""Qwen 3 (Yang et al. 2025), the dense models."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.rope import HeadNorms
from shoal.model_worker.layers.decoder_layer import DecoderLayer, LayerNorms
from shoal.model_worker.layers.weights import LayerWeights
from shoal.model_worker.models.blocks import Shapes, build_attention, build_mlp, norm_shapes
from shoal.model_worker.models.config import ModelConfig
from shoal.model_worker.models.llama import LlamaForCausalLM


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Llama with each head of q and k normalised before it is rotated."""

    @classmethod
    def build_layer(cls, config: ModelConfig, index: int, weights: LayerWeights, rotary_table: Tensor) -> DecoderLayer:
        """See `DecoderModel.build_layer`."""
        norms = LayerNorms(
            before_attention=weights.norm("input_layernorm"), before_mlp=weights.norm("post_attention_layernorm")
        )
        head_norms = HeadNorms(
            weights.take("self_attn.q_norm.weight"), weights.take("self_attn.k_norm.weight"), config.rms_norm_eps
        )
        attention = build_attention(config, index, weights, rotary_table, head_norms=head_norms)
        return DecoderLayer(attention, build_mlp(config, weights), norms)

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> Shapes:
        """See `DecoderModel.layer_shapes`."""
        head_norms = norm_shapes(config.head_dim, "self_attn.q_norm", "self_attn.k_norm")
        return {**super().layer_shapes(config), **head_norms}
