"""Gemma 3 (Gemma Team 2025), text only."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.kernels.rope import HeadNorms
from shoal.model_worker.layers.decoder_layer import DecoderLayer, LayerNorms
from shoal.model_worker.layers.norm import RMSNorm
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

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


class Gemma3ForCausalLM(DecoderModel):
    """Norms before and after attention and feed-forward, heads of q and k normalised, scaled embeddings.

    Five layers with a sliding window and a rotary embedding of their own to one that sees everything: configuration.
    """

    @classmethod
    def build_layer(cls, config: ModelConfig, index: int, weights: LayerWeights, rotary_table: Tensor) -> DecoderLayer:
        """See `DecoderModel.build_layer`."""
        eps = config.rms_norm_eps
        norms = LayerNorms(*(cls.build_norm(weights.take(f"{name}.weight"), eps) for name in _NORMS))
        head_norms = HeadNorms(
            _from_zero(weights.take("self_attn.q_norm.weight")),
            _from_zero(weights.take("self_attn.k_norm.weight")),
            eps,
        )
        attention = build_attention(config, index, weights, rotary_table, head_norms=head_norms)
        return DecoderLayer(attention, build_mlp(config, weights), norms)

    @classmethod
    def layer_shapes(cls, config: ModelConfig) -> Shapes:
        """See `DecoderModel.layer_shapes`."""
        head_norms = norm_shapes(config.head_dim, "self_attn.q_norm", "self_attn.k_norm")
        norms = norm_shapes(config.hidden_size, *_NORMS)
        return {**attention_shapes(config), **mlp_shapes(config), **norms, **head_norms}

    @classmethod
    def build_norm(cls, weight: Tensor, eps: float) -> RMSNorm:
        """See `DecoderModel.build_norm`."""
        return RMSNorm(_from_zero(weight), eps)

    @classmethod
    def embedding_scale(cls, config: ModelConfig, dtype: torch.dtype) -> float | None:
        """sqrt(hidden_size), rounded to the model's dtype: 55.5 instead of 55.43 for bfloat16 and 3072, as trained."""
        return float(torch.tensor(config.hidden_size**0.5).to(dtype))


def _from_zero(weight: Tensor) -> Tensor:
    """Norms are stored as the difference to one, which bfloat16 would lose if it were added there."""
    return 1.0 + weight.float()
