"""What decoder-only families have in common; each says how one of its layers is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.kernels.decoder import Decoder
from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.layers.decoder_layer import DecoderLayer
from shoal.model_worker.layers.embedding import Embedding
from shoal.model_worker.layers.linear import Linear
from shoal.model_worker.layers.norm import RMSNorm
from shoal.model_worker.layers.rotary import RotaryTables
from shoal.model_worker.layers.weights import LayerWeights, Weights
from shoal.model_worker.models.blocks import Shapes
from shoal.model_worker.models.config import ModelConfig


class DecoderModel(ABC):
    """Embedding, layers, final norm, head; see `models.registry.Model`."""

    def __init__(self, config: ModelConfig, weights: Weights, dtype: torch.dtype) -> None:
        embeddings = weights.take("model.embed_tokens.weight")
        tables = RotaryTables(config.head_dim, config.max_position_embeddings, embeddings.device)
        self._embed = Embedding(embeddings, self.embedding_scale(config, dtype))
        self._layers = [
            self.build_layer(
                config, index, LayerWeights(weights, f"model.layers.{index}.", config.rms_norm_eps), tables[layer.rope]
            )
            for index, layer in enumerate(config.layers)
        ]
        self._norm = self.build_norm(weights.take("model.norm.weight"), config.rms_norm_eps)
        head = embeddings if config.tie_word_embeddings else weights.take("lm_head.weight")
        self._lm_head = Linear(head, out_float32=True)
        self._logit_soft_cap = config.logit_soft_cap
        self._native = self._build_native(config, tables) if embeddings.device.type == "cpu" else None

    def forward(self, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        """See `Model.forward`."""
        residual = self._embed(batch.token_ids)
        if self._native is not None and batch.feed is None and self._native.accepts(batch.attention, residual.shape[0]):
            x = self._native.run(residual, batch.positions, batch.slot_mapping, kv_cache, batch.attention)
            return x if batch.output_rows is None else x[batch.output_rows]
        return self._run_layers(residual, batch, kv_cache)

    def _run_layers(self, residual: Tensor, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        x: Tensor | None = None
        for index, layer in enumerate(self._layers):
            if batch.feed is not None:
                batch.feed.wait(index)
            x = layer.attend(x, residual, batch, kv_cache)
            if layer is self._layers[-1] and batch.output_rows is not None:
                # From here on rows do not see each other: the last feed-forward, 2.5% of a 135M model's prefill, is
                # for those that somebody reads.
                x, residual = x[batch.output_rows], residual[batch.output_rows]
            x = layer.feed_forward(x, residual)
        assert x is not None
        return self._norm.add(x, residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """See `Model.compute_logits`."""
        logits = self._lm_head(hidden)
        if self._logit_soft_cap is None:
            return logits
        return logits.div_(self._logit_soft_cap).tanh_().mul_(self._logit_soft_cap)

    @classmethod
    @abstractmethod
    def build_layer(cls, config: ModelConfig, index: int, weights: LayerWeights, rotary_table: Tensor) -> DecoderLayer:
        """Layer `index`, taking every tensor of `layer_shapes(config)`."""

    @classmethod
    @abstractmethod
    def layer_shapes(cls, config: ModelConfig) -> Shapes:
        """Names, without the layer's prefix, and shapes of a layer's tensors."""

    @classmethod
    def build_norm(cls, weight: Tensor, eps: float) -> RMSNorm:
        """The final norm."""
        return RMSNorm(weight, eps)

    @classmethod
    def embedding_scale(cls, config: ModelConfig, dtype: torch.dtype) -> float | None:
        """What embeddings are multiplied by, if by anything."""
        return None

    @classmethod
    def tensor_shapes(cls, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """See `ModelClass.tensor_shapes`."""
        shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
        for i in range(config.num_layers):
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in cls.layer_shapes(config).items()}
        shapes["model.norm.weight"] = (config.hidden_size,)
        if not config.tie_word_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
        return shapes

    def _build_native(self, config: ModelConfig, tables: RotaryTables) -> Decoder | None:
        """All layers in one native call, if they are alike and of the build that it knows."""
        parameters = [layer.native_parameters() for layer in self._layers]
        known = [layer for layer in parameters if layer is not None]
        if len(known) < len(parameters) or len(set(config.layers)) > 1:
            return None
        table, options = tables[config.layers[0].rope], self._layers[0].attention.options
        return Decoder(known, self._norm.weight, table, config.rms_norm_eps, options)
