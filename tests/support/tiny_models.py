"""Small random checkpoints written by transformers, and what transformers computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

TINY: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, Any] = {
    "llama": LlamaConfig(**TINY),
    "all heads": LlamaConfig(**{**TINY, "num_key_value_heads": 4}),
    "one kv head, wide heads": LlamaConfig(**{**TINY, "num_key_value_heads": 1}, head_dim=32),
    "biases": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "width that oneDNN pads": LlamaConfig(**{**TINY, "intermediate_size": 112}),
    "tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama3 rope": LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE),
    "linear rope": LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "mistral": MistralConfig(**TINY, sliding_window=24),
    "mistral without a window": MistralConfig(**TINY, sliding_window=None),
}


def build_reference(variant: str) -> Any:
    """The variant as a transformers model with random weights and biases, float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(VARIANTS[variant], attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


def save_tiny(directory: Path, variant: str = "llama", **options: Any) -> Any:
    """Writes a variant as config.json and safetensors; returns the transformers model."""
    model = build_reference(variant)
    model.save_pretrained(directory, **options)
    return model


def reference_logits(model: Any, token_ids: Tensor) -> Tensor:
    """float32 [tokens, vocab_size] of one sequence."""
    with torch.inference_mode():
        logits: Tensor = model(token_ids[None].long()).logits[0].float()
    return logits
