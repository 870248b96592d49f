"""Which class runs which architecture."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor

from shoal.model_worker.layers.batch import ForwardBatch
from shoal.model_worker.layers.weights import Weights
from shoal.model_worker.models.config import ModelConfig, ModelConfigError

ARCHITECTURES = {
    "Gemma3ForCausalLM": "shoal.model_worker.models.gemma3:Gemma3ForCausalLM",
    "LlamaForCausalLM": "shoal.model_worker.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "shoal.model_worker.models.llama:LlamaForCausalLM",
    "Olmo2ForCausalLM": "shoal.model_worker.models.olmo2:Olmo2ForCausalLM",
    "Phi3ForCausalLM": "shoal.model_worker.models.phi3:Phi3ForCausalLM",
    "Qwen2ForCausalLM": "shoal.model_worker.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "shoal.model_worker.models.qwen3:Qwen3ForCausalLM",
    "SmolLM3ForCausalLM": "shoal.model_worker.models.smollm3:SmolLM3ForCausalLM",
}
"""Architecture, as config.json names it, to "module:class"."""


class Model(Protocol):
    """A model ready to run. Stateless between steps: the KV cache belongs to the runner."""

    def forward(self, batch: ForwardBatch, kv_cache: Tensor) -> Tensor:
        """Writes the KV of all tokens; returns the final, normalised hidden states [R, hidden_size] of output_rows."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """float32 [rows, vocab_size] from rows of `forward`'s result."""


class ModelClass(Protocol):
    """How a model is built."""

    def __call__(self, config: ModelConfig, weights: Weights, dtype: torch.dtype) -> Model:
        """Takes every tensor of `tensor_shapes(config)` from `weights` once."""

    def tensor_shapes(self, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """Names, as in Hugging Face checkpoints, and shapes of the tensors that the model is built from."""


def require_known(architecture: str) -> None:
    """Raises ModelConfigError, naming the known ones, if the architecture is unknown."""
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelConfigError(f"architecture {architecture} is not supported; known architectures: {known}")


def find_model_class(architecture: str) -> ModelClass:
    """Raises ModelConfigError, naming the known ones, if the architecture is unknown."""
    require_known(architecture)
    module, name = ARCHITECTURES[architecture].split(":")
    return cast(ModelClass, getattr(importlib.import_module(module), name))
