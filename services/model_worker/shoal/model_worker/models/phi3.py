"""Phi-3 (Abdin et al. 2024), Phi-3.5-mini, Phi-4 and Phi-4-mini."""

from __future__ import annotations

from torch import Tensor

from shoal.model_worker.layers.attention import Attention
from shoal.model_worker.layers.decoder_layer import DecoderLayer, LayerNorms
from shoal.model_worker.layers.mlp import GatedMLP
from shoal.model_worker.layers.weights import LayerWeights
from shoal.model_worker.models.blocks import Shapes, attention_options, linear_shapes, norm_shapes
from shoal.model_worker.models.config import ModelConfig
from shoal.model_worker.models.decoder import DecoderModel


class Phi3ForCausalLM(DecoderModel):
    """Built as Llama is, but q, k, v and gate, up are stored as one product each."""

    @classmethod
    def build_layer(cls, config: ModelConfig, index: int, weights: LayerWeights, rotary_table: Tensor) -> DecoderLayer:
        """See `DecoderModel.build_layer`."""
        norms = LayerNorms(
            before_attention=weights.norm("input_layernorm"), before_mlp=weights.norm("post_attention_layernorm")
        )
        attention = Attention(
            weights.linear("self_attn.qkv_proj"),
            weights.linear("self_attn.o_proj"),
            rotary_table,
            index,
            attention_options(config, index),
        )
        mlp = GatedMLP(weights.linear("mlp.gate_up_proj"), weights.linear("mlp.down_proj"), config.activation)
        return DecoderLayer(attention, mlp, norms)

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> Shapes:
        """See `DecoderModel.layer_shapes`."""
        hidden, wide, q = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
        return {
            **linear_shapes("self_attn.qkv_proj", q + 2 * config.num_kv_heads * config.head_dim, hidden),
            **linear_shapes("self_attn.o_proj", hidden, q),
            **linear_shapes("mlp.gate_up_proj", 2 * wide, hidden),
            **linear_shapes("mlp.down_proj", hidden, wide),
            **norm_shapes(hidden, "input_layernorm", "post_attention_layernorm"),
        }
