"""How llama.cpp stores each family: under which names, and in which respects other than Hugging Face does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from shoal.model_worker.models.config import Activation, ModelConfig

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_PLAIN = {**_PRE_NORMS, **_ATTENTION, **_MLP}


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """One value of general.architecture."""

    architecture: str
    """As Hugging Face names it."""
    blocks: Mapping[str, str]
    """Names of a block's modules, and Hugging Face's."""
    rotates_neighbours: bool = False
    """Whether rows of q and k are in the order for rotating neighbours (2i, 2i + 1) instead of halves."""
    norm_offset: float = 0.0
    """How much more a norm's weights are than in Hugging Face's files."""
    activation: Activation = "silu"

    def hf_name(self, name: str) -> str:
        """The Hugging Face name of a tensor; an unknown one is kept, to be reported as unexpected."""
        if name in _TOP:
            return _TOP[name]
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if match is None or match[2] not in self.blocks:
            return name
        return f"model.layers.{match[1]}.{self.blocks[match[2]]}.{match[3]}"

    def restore(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """What Hugging Face's file holds under the name."""
        if self.norm_offset and name.endswith("norm.weight"):
            return tensor - self.norm_offset
        if self.rotates_neighbours and ".q_proj." in name:
            return _restore_rotary_order(tensor, config.num_heads)
        if self.rotates_neighbours and ".k_proj." in name:
            return _restore_rotary_order(tensor, config.num_kv_heads)
        return tensor


FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily("LlamaForCausalLM", _PLAIN, rotates_neighbours=True),
    "qwen2": GgufFamily("Qwen2ForCausalLM", _PLAIN),
    "qwen3": GgufFamily("Qwen3ForCausalLM", {**_PLAIN, **_QK_NORMS}),
    "gemma3": GgufFamily(
        "Gemma3ForCausalLM",
        {
            "attn_norm": "input_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            **_POST_NORMS,
            **_QK_NORMS,
            **_ATTENTION,
            **_MLP,
        },
        norm_offset=1.0,
        activation="gelu_tanh",
    ),
    "phi3": GgufFamily(
        "Phi3ForCausalLM",
        {
            **_PRE_NORMS,
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
    "smollm3": GgufFamily("SmolLM3ForCausalLM", _PLAIN, rotates_neighbours=True),
    "olmo2": GgufFamily("Olmo2ForCausalLM", {**_POST_NORMS, **_QK_NORMS, **_ATTENTION, **_MLP}),
}


def _restore_rotary_order(tensor: Tensor, num_heads: int) -> Tensor:
    """llama.cpp rotates neighbours (2i, 2i + 1), Hugging Face halves (i, i + dim / 2); rows of q and k differ so."""
    per_head = tensor.shape[0] // num_heads
    return tensor.view(num_heads, per_head // 2, 2, -1).transpose(1, 2).reshape(tensor.shape)
