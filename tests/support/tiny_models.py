"""Small random checkpoints written by transformers, and what transformers computes with them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

TINY: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
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
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = {**TINY, "head_dim": 32, "sliding_window": 24, "sliding_window_pattern": 2}
VARIANTS: dict[str, Any] = {
    "llama": LlamaConfig(**TINY),
    "all heads": LlamaConfig(**{**TINY, "num_key_value_heads": 4}),
    "one kv head, wide heads": LlamaConfig(**{**TINY, "num_key_value_heads": 1}, head_dim=32),
    "biases": LlamaConfig(**TINY, attention_bias=True, mlp_bias=True),
    "width that oneDNN pads": LlamaConfig(**{**TINY, "intermediate_size": 112}),
    "tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama3 rope": LlamaConfig(**TINY, rope_parameters=LLAMA3_ROPE),
    "linear rope": LlamaConfig(**TINY, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "dynamic rope": LlamaConfig(**TINY, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
    "mistral": MistralConfig(**TINY, sliding_window=24),
    "mistral without a window": MistralConfig(**TINY, sliding_window=None),
}
"""What the plain Llama build comes with."""

FAMILIES: dict[str, Any] = {
    "llama3": VARIANTS["llama3 rope"],
    "mistral": VARIANTS["mistral"],
    "qwen2": Qwen2Config(**TINY, tie_word_embeddings=True),
    "qwen2, upper layers with a window": Qwen2Config(
        **TINY, use_sliding_window=True, sliding_window=24, max_window_layers=1
    ),
    "qwen2.5, yarn": Qwen2Config(**TINY, rope_parameters=YARN),
    "qwen3": Qwen3Config(**TINY, head_dim=32, tie_word_embeddings=True),
    "qwen3, biases, upper layers with a window": Qwen3Config(
        **TINY, head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=24, max_window_layers=2
    ),
    "gemma3": Gemma3TextConfig(**GEMMA),
    "gemma3, scaled rope, caps": Gemma3TextConfig(
        **{**GEMMA, "query_pre_attn_scalar": 40},
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        attn_logit_softcapping=8.0,
        final_logit_softcapping=4.0,
        attention_bias=True,
    ),
    "phi3": Phi3Config(**TINY, sliding_window=24),
    "phi4-mini, longrope": Phi3Config(**TINY, original_max_position_embeddings=64, rope_parameters=dict(LONGROPE)),
    "smollm3": SmolLM3Config(**TINY, no_rope_layer_interval=2),
    "smollm3, window without rope": SmolLM3Config(
        **TINY, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=24, attention_bias=True, mlp_bias=True
    ),
    "olmo2": Olmo2Config(**TINY),
    "olmo2, all heads, biases": Olmo2Config(**{**TINY, "num_key_value_heads": 4}, attention_bias=True),
}
"""Each family as its published checkpoints are, and with what else its configuration offers."""

GGUF_FAMILIES: dict[str, Any] = {
    "gemma3, published pattern": Gemma3TextConfig(
        **{**GEMMA, "num_hidden_layers": 7, "sliding_window_pattern": 6, "query_pre_attn_scalar": 32}
    ),
    "gemma3, published pattern, scaled rope": Gemma3TextConfig(
        **{**GEMMA, "num_hidden_layers": 7, "sliding_window_pattern": 6, "query_pre_attn_scalar": 32},
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        final_logit_softcapping=4.0,
    ),
    "smollm3, published interval": SmolLM3Config(**{**TINY, "num_hidden_layers": 5}),
}
"""What GGUF files leave to the reader, as published."""


def build_reference(variant: str) -> Any:
    """The variant as a transformers model with random weights, biases and norms, float32."""
    torch.manual_seed(0)
    config = {**VARIANTS, **FAMILIES, **GGUF_FAMILIES}[variant]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return _apply_attention_cap(model)


def save_tiny(directory: Path, variant: str = "llama", **options: Any) -> Any:
    """Writes a variant as config.json and safetensors; returns the transformers model."""
    model = build_reference(variant)
    model.save_pretrained(directory, **options)
    return model


def reload_reference(directory: Path, dtype: torch.dtype) -> Any:
    """What `save_tiny` wrote, as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    return _apply_attention_cap(model.eval())


def reference_logits(model: Any, token_ids: Tensor) -> Tensor:
    """float32 [tokens, vocab_size] of one sequence."""
    with torch.inference_mode():
        logits: Tensor = model(token_ids[None].long()).logits[0].float()
    return logits


def _apply_attention_cap(model: Any) -> Any:
    """Gemma 3's class knows the cap of attention's scores, and forgets to pass it on."""
    cap = getattr(model.config, "attn_logit_softcapping", None)
    for layer in model.model.layers if cap is not None else ():
        layer.self_attn.forward = functools.partial(layer.self_attn.forward, softcap=cap)
    return model
