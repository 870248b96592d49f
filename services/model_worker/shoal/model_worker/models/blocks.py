"""Attention and feed-forward as most checkpoints store them, and the shapes of their tensors."""

from __future__ import annotations

from torch import Tensor

from shoal.kernels.paged_attention import AttentionOptions
from shoal.kernels.rope import HeadNorms
from shoal.model_worker.layers.attention import Attention
from shoal.model_worker.layers.mlp import GatedMLP
from shoal.model_worker.layers.norm import ProjectionNorms
from shoal.model_worker.layers.weights import LayerWeights
from shoal.model_worker.models.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
"""Names of tensors, without their layer's prefix, and shapes."""


def attention_options(config: ModelConfig, index: int) -> AttentionOptions:
    """Of layer `index`."""
    return AttentionOptions(config.score_scale, config.layers[index].sliding_window, config.attention_soft_cap)


def build_attention(
    config: ModelConfig,
    index: int,
    weights: LayerWeights,
    rotary_table: Tensor,
    *,
    head_norms: HeadNorms | None = None,
    projection_norms: ProjectionNorms | None = None,
) -> Attention:
    """From q_proj, k_proj, v_proj and o_proj."""
    return Attention(
        weights.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", bias=config.attention_bias),
        weights.linear("self_attn.o_proj", bias=config.attention_output_bias),
        rotary_table,
        index,
        attention_options(config, index),
        head_norms=head_norms,
        projection_norms=projection_norms,
    )


def build_mlp(config: ModelConfig, weights: LayerWeights) -> GatedMLP:
    """From gate_proj, up_proj and down_proj."""
    return GatedMLP(
        weights.linear("mlp.gate_proj", "mlp.up_proj", bias=config.mlp_bias),
        weights.linear("mlp.down_proj", bias=config.mlp_bias),
        config.activation,
    )


def attention_shapes(config: ModelConfig) -> Shapes:
    """What `build_attention` takes, without norms."""
    hidden, q, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        **linear_shapes("self_attn.q_proj", q, hidden, bias=config.attention_bias),
        **linear_shapes("self_attn.k_proj", kv, hidden, bias=config.attention_bias),
        **linear_shapes("self_attn.v_proj", kv, hidden, bias=config.attention_bias),
        **linear_shapes("self_attn.o_proj", hidden, q, bias=config.attention_output_bias),
    }


def mlp_shapes(config: ModelConfig) -> Shapes:
    """What `build_mlp` takes."""
    hidden, wide = config.hidden_size, config.intermediate_size
    return {
        **linear_shapes("mlp.gate_proj", wide, hidden, bias=config.mlp_bias),
        **linear_shapes("mlp.up_proj", wide, hidden, bias=config.mlp_bias),
        **linear_shapes("mlp.down_proj", hidden, wide, bias=config.mlp_bias),
    }


def linear_shapes(name: str, rows: int, columns: int, *, bias: bool = False) -> Shapes:
    """Of one linear layer."""
    weight: Shapes = {f"{name}.weight": (rows, columns)}
    return {**weight, f"{name}.bias": (rows,)} if bias else weight


def norm_shapes(width: int, *names: str) -> Shapes:
    """Of norms of one width."""
    return {f"{name}.weight": (width,) for name in names}
