"""SmolLM3 (Hugging Face 2025)."""

from __future__ import annotations

from shoal.model_worker.models.llama import LlamaForCausalLM


class SmolLM3ForCausalLM(LlamaForCausalLM):
    """Llama with every fourth layer free of rotary embedding (Yang et al. 2025, "RNoPE"), which is configuration."""
