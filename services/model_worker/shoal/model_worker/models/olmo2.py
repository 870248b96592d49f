"""OLMo 2 (OLMo Team 2025)."""

from __future__ import annotations

from torch import Tensor

from shoal.model_worker.layers.decoder_layer import DecoderLayer, LayerNorms
from shoal.model_worker.layers.norm import ProjectionNorms
from shoal.model_worker.layers.weights import LayerWeights
from shoal.model_worker.models.blocks import (
    Shapes,
    attention_shapes,
    build_attention,
    build_mlp,
    mlp_shapes,
    norm_shapes,
)
from shoal.model_worker.models.config import ModelConfig
from shoal.model_worker.models.decoder import DecoderModel


class Olmo2ForCausalLM(DecoderModel):
    """Norms of what attention and feed-forward add to the residual stream, and of all heads of q, and of k, at once."""

    @classmethod
    def build_layer(cls, config: ModelConfig, index: int, weights: LayerWeights, rotary_table: Tensor) -> DecoderLayer:
        """See `DecoderModel.build_layer`."""
        norms = LayerNorms(
            after_attention=weights.norm("post_attention_layernorm"),
            after_mlp=weights.norm("post_feedforward_layernorm"),
        )
        projection_norms = ProjectionNorms(weights.norm("self_attn.q_norm"), weights.norm("self_attn.k_norm"))
        attention = build_attention(config, index, weights, rotary_table, projection_norms=projection_norms)
        return DecoderLayer(attention, build_mlp(config, weights), norms)

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> Shapes:
        """See `DecoderModel.layer_shapes`."""
        return {
            **attention_shapes(config),
            **mlp_shapes(config),
            **norm_shapes(config.num_heads * config.head_dim, "self_attn.q_norm"),
            **norm_shapes(config.num_kv_heads * config.head_dim, "self_attn.k_norm"),
            **norm_shapes(config.hidden_size, "post_attention_layernorm", "post_feedforward_layernorm"),
        }
