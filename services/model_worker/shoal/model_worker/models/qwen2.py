"""Qwen 2 and 2.5 (Yang et al. 2024)."""

from __future__ import annotations

from shoal.model_worker.models.llama import LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    """Llama with biases on q, k and v, and in some files a sliding window in the upper layers: both configuration."""
