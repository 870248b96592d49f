"""Llama 2 and 3 (Touvron et al. 2023), Mistral, SmolLM2 and others of the same build."""

from __future__ import annotations

from torch import Tensor

from shoal.model_worker.layers.decoder_layer import DecoderLayer, LayerNorms
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


class LlamaForCausalLM(DecoderModel):
    """Attention and feed-forward, each after a norm of the residual stream."""

    @classmethod
    def build_layer(cls, config: ModelConfig, index: int, weights: LayerWeights, rotary_table: Tensor) -> DecoderLayer:
        """See `DecoderModel.build_layer`."""
        norms = LayerNorms(
            before_attention=weights.norm("input_layernorm"), before_mlp=weights.norm("post_attention_layernorm")
        )
        attention = build_attention(config, index, weights, rotary_table)
        return DecoderLayer(attention, build_mlp(config, weights), norms)

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> Shapes:
        """See `DecoderModel.layer_shapes`."""
        norms = norm_shapes(config.hidden_size, "input_layernorm", "post_attention_layernorm")
        return {**attention_shapes(config), **mlp_shapes(config), **norms}
