"""From a GGUF file's metadata to a ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shoal.model_worker.loader.gguf_families import FAMILIES, GgufFamily
from shoal.model_worker.loader.gguf_tensors import GgufTensor
from shoal.model_worker.models.config import (
    MAX_LAYERS,
    LayerConfig,
    ModelConfig,
    ModelConfigError,
    RopeConfig,
    longrope_attention_factor,
    yarn_attention_factor,
)

FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are configuration: divisors of the rotary frequencies."""

_GEMMA3_PATTERN = 6
_GEMMA3_LOCAL_THETA = 10000.0
_GEMMA3_27B_LAYERS = 62
_SMOLLM3_NO_ROPE_INTERVAL = 4
"""What llama.cpp knows of these families without being told by the file."""


def find_family(metadata: Mapping[str, Any]) -> GgufFamily:
    """Raises ModelConfigError, naming the known ones, if general.architecture is unknown."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelConfigError(f"general.architecture {name!r} is not supported; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def parse_metadata(
    metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor], factors: Mapping[str, tuple[float, ...]]
) -> ModelConfig:
    """`tensors` by the file's names; `factors`: the values of those in FACTOR_TENSORS that are there."""
    family = find_family(metadata)
    get = _Metadata(metadata)
    if "token_embd.weight" not in tensors:
        raise ModelConfigError("tensor token_embd.weight is missing")
    hidden_size, num_heads = get("embedding_length"), get("attention.head_count")
    head_dim = get("attention.key_length", hidden_size // num_heads)
    if head_dim < 1:
        raise ModelConfigError(f"{get.family}.attention.head_count ({num_heads}) is more than {hidden_size} wide rows")
    layers = _parse_layers(get, _parse_rope(get, family, head_dim, factors))
    scale: float | None = get("attention.scale", 0.0) or None
    if get.family == "gemma3" and scale is None and len(layers) == _GEMMA3_27B_LAYERS:
        scale = (hidden_size // num_heads) ** -0.5
    eos = (_token_id(metadata, name) for name in ("eos", "eot", "eom"))
    return ModelConfig(
        architecture=family.architecture,
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=hidden_size,
        intermediate_size=get("feed_forward_length"),
        layers=layers,
        num_heads=num_heads,
        num_kv_heads=get("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon", 1e-5),
        activation=family.activation,
        attention_scale=scale,
        logit_soft_cap=get("final_logit_softcapping", 0.0) or None,
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        bos_token_id=_token_id(metadata, "bos"),
        eos_token_ids=tuple(dict.fromkeys(i for i in eos if i is not None)),
    )


class _Metadata:
    """Reads a family's keys."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.family: str = metadata["general.architecture"]

    def __contains__(self, key: str) -> bool:
        return f"{self.family}.{key}" in self._metadata

    def __call__(self, key: str, default: Any = None) -> Any:
        """A positive number, of the type of the default (an integer if there is none), or the default."""
        name = f"{self.family}.{key}"
        if name not in self._metadata:
            if default is None:
                raise ModelConfigError(f"{name} is missing")
            return default
        value = self._metadata[name]
        kinds = (int, float) if isinstance(default, float) else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
            raise ModelConfigError(f"{name} must be a positive number, not {value!r}")
        return value

    def window(self) -> int | None:
        """attention.sliding_window; Phi writes a zero for none."""
        key = "attention.sliding_window"
        if key not in self or (self.family == "phi3" and self._metadata[f"{self.family}.{key}"] == 0):
            return None
        return int(self(key))

    def scaling(self) -> str:
        """rope.scaling.type."""
        kind = self._metadata.get(f"{self.family}.rope.scaling.type", "none")
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise ModelConfigError(
                f"{self.family}.rope.scaling.type {kind!r} is not supported; use none, linear, yarn or longrope"
            )
        return str(kind)


def _parse_layers(get: _Metadata, rope: RopeConfig) -> tuple[LayerConfig, ...]:
    count: int = get("block_count")
    window = get.window()
    if count > MAX_LAYERS:
        raise ModelConfigError(f"{get.family}.block_count must be at most {MAX_LAYERS}, not {count}")
    if get.family == "gemma3" and window is not None:
        pattern = get("attention.sliding_window_pattern", _GEMMA3_PATTERN)
        local = LayerConfig(window, RopeConfig(get("rope.freq_base_swa", _GEMMA3_LOCAL_THETA)))
        return tuple(local if (i + 1) % pattern else LayerConfig(None, rope) for i in range(count))
    if get.family == "smollm3":
        interval = _SMOLLM3_NO_ROPE_INTERVAL
        return tuple(LayerConfig(window, rope if (i + 1) % interval else None) for i in range(count))
    if window is not None and get.family not in ("llama", "phi3"):
        raise ModelConfigError(
            f"{get.family}.attention.sliding_window is not supported for this family: the file does not say which "
            "layers it is for"
        )
    return (LayerConfig(window, rope),) * count


def _parse_rope(
    get: _Metadata, family: GgufFamily, head_dim: int, factors: Mapping[str, tuple[float, ...]]
) -> RopeConfig:
    theta, kind = get("rope.freq_base", 10000.0), get.scaling()
    rotary_dim = get("rope.dimension_count", head_dim)
    if rotary_dim > head_dim or (family.rotates_neighbours and rotary_dim != head_dim):
        raise ModelConfigError(f"{get.family}.rope.dimension_count must be the head size, {head_dim}")
    partial = rotary_dim / head_dim
    if int(head_dim * partial) < rotary_dim:  # rounded down, as 15 / 22 is
        partial = math.nextafter(partial, 1.0)
    freqs, long, short = (factors.get(name, ()) for name in FACTOR_TENSORS)
    original = get("rope.scaling.original_context_length", get("context_length"))
    stretch = get("context_length") / original
    if original < 2:
        raise ModelConfigError(f"{get.family}.rope.scaling.original_context_length must be at least 2, not {original}")
    if long and short:
        usual = longrope_attention_factor(stretch, original)
        return RopeConfig(
            theta,
            "longrope",
            stretch,
            original_max_position=original,
            frequency_factors=long,
            short_frequency_factors=short,
            partial_rotary_factor=partial,
            attention_factor=get("rope.scaling.attn_factor", usual),
        )
    if freqs:
        return RopeConfig(theta, "factors", frequency_factors=freqs, partial_rotary_factor=partial)
    if kind == "linear":
        return RopeConfig(theta, "linear", float(get("rope.scaling.factor", 1.0)), partial_rotary_factor=partial)
    if kind == "yarn":
        factor = float(get("rope.scaling.factor", stretch))
        return RopeConfig(
            theta,
            "yarn",
            factor,
            original_max_position=original,
            partial_rotary_factor=partial,
            attention_factor=yarn_attention_factor(factor),
            beta_fast=get("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=get("rope.scaling.yarn_beta_slow", 1.0),
        )
    return RopeConfig(theta, partial_rotary_factor=partial)


def _token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if token_id is not None and type(token_id) is not int:
        raise ModelConfigError(f"tokenizer.ggml.{name}_token_id must be an integer, not {token_id!r}")
    return token_id
