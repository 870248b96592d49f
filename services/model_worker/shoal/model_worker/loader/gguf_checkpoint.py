"""GGUF files: llama.cpp's names and row order become those of Hugging Face; tensors are dequantised when read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from shoal.gguf import GgufError, map_file, read_header
from shoal.model_worker.loader.errors import ModelLoadError
from shoal.model_worker.loader.gguf_tensors import GgufTensor, place_tensors
from shoal.model_worker.models.config import LayerConfig, ModelConfig, ModelConfigError, RopeConfig

_ARCHITECTURES = {"llama": "LlamaForCausalLM"}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


class GgufCheckpoint:
    """See `Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        try:
            self._data = map_file(path)
            header = read_header(path, self._data)
        except GgufError as error:
            raise ModelLoadError(path, error.located_problem) from None
        tensors = place_tensors(path, header, len(self._data))
        self._tensors = {_hf_name(name): tensor for name, tensor in tensors.items() if name != _ROPE_FACTORS}
        factors = tensors.get(_ROPE_FACTORS)
        try:
            rope_factors = tuple(self._decode(factors).tolist()) if factors else ()
            self.config = _parse_metadata(header.metadata, tensors, rope_factors)
        except ModelConfigError as error:
            raise ModelLoadError(path, str(error)) from None

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Checkpoint.shapes`."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def num_bytes(self, name: str) -> int:
        """See `Checkpoint.num_bytes`."""
        return self._tensors[name].num_bytes

    def read(self, name: str) -> Tensor:
        """See `Checkpoint.read`."""
        tensor = self._decode(self._tensors[name])
        if ".q_proj." in name:
            return _restore_rotary_order(tensor, self.config.num_heads)
        return _restore_rotary_order(tensor, self.config.num_kv_heads) if ".k_proj." in name else tensor

    def _decode(self, tensor: GgufTensor) -> Tensor:
        raw = np.frombuffer(self._data, dtype=np.uint8, count=tensor.num_bytes, offset=tensor.offset)
        if tensor.kind in _PLAIN:
            # A copy, as torch wants memory it could write to; dequantising copies, too.
            return torch.from_numpy(raw.copy()).view(_PLAIN[tensor.kind]).view(tensor.shape)
        try:
            values = dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.kind)
        except NotImplementedError:
            raise ModelLoadError(self.path, f"tensor {tensor.name}: {tensor.kind.name} is not supported") from None
        return torch.from_numpy(values).view(tensor.shape)


def _restore_rotary_order(tensor: Tensor, num_heads: int) -> Tensor:
    """llama.cpp rotates neighbours (2i, 2i + 1), Hugging Face halves (i, i + dim / 2); rows of q and k differ so."""
    per_head = tensor.shape[0] // num_heads
    return tensor.view(num_heads, per_head // 2, 2, -1).transpose(1, 2).reshape(tensor.shape)


def _hf_name(name: str) -> str:
    """The Hugging Face name; an unknown one is kept, to be reported as unexpected."""
    if name in _TOP:
        return _TOP[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _BLOCK:
        return name
    return f"model.layers.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"


def _parse_metadata(
    metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor], rope_factors: tuple[float, ...]
) -> ModelConfig:
    family = metadata.get("general.architecture")
    if family not in _ARCHITECTURES:
        raise ModelConfigError(f"general.architecture {family!r} is not supported; known: {', '.join(_ARCHITECTURES)}")

    def get(key: str, default: Any = None) -> Any:
        """A positive number, of the type of the default (an integer if there is none)."""
        value = metadata.get(f"{family}.{key}", default)
        if value is None:
            raise ModelConfigError(f"{family}.{key} is missing")
        kinds = (int, float) if isinstance(default, float) else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
            raise ModelConfigError(f"{family}.{key} must be a positive number, not {value!r}")
        return value

    if "token_embd.weight" not in tensors:
        raise ModelConfigError("tensor token_embd.weight is missing")
    hidden_size, num_heads = get("embedding_length"), get("attention.head_count")
    head_dim = get("attention.key_length", hidden_size // num_heads)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise ModelConfigError(f"{family}.rope.dimension_count must be the head size, {head_dim}")
    rope = _parse_rope(metadata.get(f"{family}.rope.scaling.type", "none"), family, get, rope_factors)
    window = get("attention.sliding_window") if f"{family}.attention.sliding_window" in metadata else None
    eos = (_token_id(metadata, name) for name in ("eos", "eot", "eom"))
    return ModelConfig(
        architecture=_ARCHITECTURES[family],
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=hidden_size,
        intermediate_size=get("feed_forward_length"),
        layers=(LayerConfig(window, rope),) * get("block_count"),
        num_heads=num_heads,
        num_kv_heads=get("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon", 1e-5),
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        bos_token_id=_token_id(metadata, "bos"),
        eos_token_ids=tuple(dict.fromkeys(i for i in eos if i is not None)),
    )


def _token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if token_id is not None and type(token_id) is not int:
        raise ModelConfigError(f"tokenizer.ggml.{name}_token_id must be an integer, not {token_id!r}")
    return token_id


def _parse_rope(kind: Any, family: str, get: Callable[[str, float], float], factors: tuple[float, ...]) -> RopeConfig:
    theta = get("rope.freq_base", 10000.0)
    if kind not in ("none", "linear"):
        raise ModelConfigError(f"{family}.rope.scaling.type {kind!r} is not supported; use none or linear")
    if factors:
        return RopeConfig(theta, "factors", frequency_factors=factors)
    if kind == "linear":
        return RopeConfig(theta, "linear", float(get("rope.scaling.factor", 1.0)))
    return RopeConfig(theta)
