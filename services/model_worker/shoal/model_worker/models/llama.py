"""Llama 2 and 3, Mistral, SmolLM2 and others of the same build (Touvron et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.kernels.decoder import Decoder, DecoderLayer
from shoal.kernels.paged_attention import AttentionOptions
from shoal.model_worker.layers.attention import Attention
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.layers.embedding import Embedding
from shoal.model_worker.layers.linear import Linear
from shoal.model_worker.layers.mlp import GatedMLP
from shoal.model_worker.layers.norm import RMSNorm
from shoal.model_worker.layers.rotary import rotary_table
from shoal.model_worker.layers.weights import Weights
from shoal.model_worker.models.config import ModelConfig


class LlamaDecoderLayer:
    """Attention and feed-forward, each after a norm of the residual stream."""

    def __init__(
        self, config: ModelConfig, weights: Weights, table: Tensor, options: AttentionOptions, index: int
    ) -> None:
        prefix = f"model.layers.{index}."
        qkv = [f"{prefix}self_attn.{name}_proj" for name in "qkv"]
        gate_up = [f"{prefix}mlp.{name}_proj" for name in ("gate", "up")]
        output_bias, mlp_bias = config.attention_output_bias, config.mlp_bias
        self.input_norm = RMSNorm(weights.take(f"{prefix}input_layernorm.weight"), config.rms_norm_eps)
        self.attention = Attention(
            _merged_linear(weights, qkv, bias=config.attention_bias),
            _merged_linear(weights, [f"{prefix}self_attn.o_proj"], bias=output_bias),
            table,
            index,
            options,
        )
        self.post_attention_norm = RMSNorm(
            weights.take(f"{prefix}post_attention_layernorm.weight"), config.rms_norm_eps
        )
        self.mlp = GatedMLP(
            _merged_linear(weights, gate_up, bias=mlp_bias),
            _merged_linear(weights, [f"{prefix}mlp.down_proj"], bias=mlp_bias),
        )

    def parameters(self) -> DecoderLayer:
        """For the native call that runs all layers at once."""
        attention, mlp = self.attention, self.mlp
        return DecoderLayer(
            self.input_norm.weight,
            self.post_attention_norm.weight,
            attention.qkv_proj.weight,
            attention.o_proj.weight,
            mlp.gate_up_proj.weight,
            mlp.down_proj.weight,
            attention.qkv_proj.bias,
            attention.o_proj.bias,
            mlp.gate_up_proj.bias,
            mlp.down_proj.bias,
        )


class LlamaForCausalLM:
    """The model; see `models.registry.Model`."""

    def __init__(self, config: ModelConfig, weights: Weights, dtype: torch.dtype) -> None:
        self._config, self._dtype = config, dtype
        table = rotary_table(config.rope, config.head_dim, config.max_position_embeddings)
        embeddings = weights.take("model.embed_tokens.weight")
        table = table.to(embeddings.device)
        self._embed = Embedding(embeddings)
        options = AttentionOptions(config.head_dim**-0.5, config.sliding_window)
        self._layers = [LlamaDecoderLayer(config, weights, table, options, i) for i in range(config.num_layers)]
        self._norm = RMSNorm(weights.take("model.norm.weight"), config.rms_norm_eps)
        parameters = [layer.parameters() for layer in self._layers]
        self._decoder = Decoder(parameters, self._norm.weight, table, config.rms_norm_eps, options)
        head = embeddings if config.tie_word_embeddings else weights.take("lm_head.weight")
        self._lm_head = Linear(head, out_float32=True)

    def forward(self, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        """See `Model.forward`."""
        residual = self._embed(batch.token_ids)
        if self._decoder.accepts(batch.attention, residual.shape[0]):
            x = self._decoder.run(residual, batch.positions, batch.slot_mapping, kv_cache, batch.attention)
            return x if batch.output_rows is None else x[batch.output_rows]
        return self._run_layers(residual, batch, kv_cache)

    def _run_layers(self, residual: Tensor, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        x: Tensor | None = None
        for layer in self._layers:
            x = layer.input_norm(residual) if x is None else layer.input_norm.add(x, residual)
            x = layer.attention(x, batch, kv_cache)
            if layer is self._layers[-1] and batch.output_rows is not None:
                # From here on rows do not see each other: the last feed-forward, 2.5% of a 135M model's prefill, is
                # for those that somebody reads.
                x, residual = x[batch.output_rows], residual[batch.output_rows]
            x = layer.post_attention_norm.add(x, residual)
            x = layer.mlp(x)
        assert x is not None
        return self._norm.add(x, residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """See `Model.compute_logits`."""
        return self._lm_head(hidden)

    @staticmethod
    def tensor_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """See `ModelClass.tensor_shapes`."""
        hidden, wide = config.hidden_size, config.intermediate_size
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        linears = (
            *(
                ("self_attn.q_proj", q, hidden, config.attention_bias),
                ("self_attn.k_proj", kv, hidden, config.attention_bias),
            ),
            *(
                ("self_attn.v_proj", kv, hidden, config.attention_bias),
                ("self_attn.o_proj", hidden, q, config.attention_output_bias),
            ),
            *(("mlp.gate_proj", wide, hidden, config.mlp_bias), ("mlp.up_proj", wide, hidden, config.mlp_bias)),
            ("mlp.down_proj", hidden, wide, config.mlp_bias),
        )
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
        for i in range(config.num_layers):
            for name, rows, columns, bias in linears:
                shapes[f"model.layers.{i}.{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"model.layers.{i}.{name}.bias"] = (rows,)
            for name in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{i}.{name}.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, hidden)
        return shapes


def _merged_linear(weights: Weights, names: list[str], *, bias: bool) -> Linear:
    """One product for several that read the same input: fewer calls, and one pass over the rows."""
    weight = torch.cat([weights.take(f"{name}.weight") for name in names])
    return Linear(weight, torch.cat([weights.take(f"{name}.bias") for name in names]) if bias else None)
