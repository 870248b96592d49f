"""From the object in a Hugging Face config.json to a ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.model_worker.models.config import MAX_LAYERS, Activation, LayerConfig, ModelConfig, ModelConfigError
from shoal.model_worker.models.hf_fields import flag, integer, integers, number, optional_number
from shoal.model_worker.models.hf_rope import parse_ropes
from shoal.model_worker.models.registry import require_known

FULL, SLIDING = "full_attention", "sliding_attention"

_QWEN = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "MistralForCausalLM": {"sliding_window": 4096},
    "Qwen2ForCausalLM": {**_QWEN, "attention_bias": True, "attention_output_bias": False},
    "Qwen3ForCausalLM": {**_QWEN, "head_dim": 128},
    "Gemma3ForCausalLM": {
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1e6,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    "Phi3ForCausalLM": {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    "SmolLM3ForCausalLM": {"rope_theta": 2e6, "tie_word_embeddings": True, "no_rope_layer_interval": 4},
    "Olmo2ForCausalLM": {"rms_norm_eps": 1e-5},
}
"""What a family means by a field that its config.json leaves out, where that is not what most mean."""

_ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def parse_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """Both spellings: those of transformers 5 and older ones found in published files.

    Raises ModelConfigError for what is missing, of another type or unsupported.
    """
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else "(none given)"
    require_known(architecture)
    config = {**_DEFAULTS.get(architecture, {}), **config}
    _refuse_unsupported(config)
    hidden_size, num_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    if num_heads < 1:
        raise ModelConfigError(f"num_attention_heads must be at least 1, not {num_heads}")
    attention_bias = flag(config, "attention_bias")
    query_scalar = optional_number(config, "query_pre_attn_scalar")
    return ModelConfig(
        architecture=architecture,
        vocab_size=integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer(config, "intermediate_size"),
        layers=_parse_layers(config, architecture),
        num_heads=num_heads,
        num_kv_heads=integer(config, "num_key_value_heads", num_heads),
        head_dim=integer(config, "head_dim", hidden_size // num_heads),
        max_position_embeddings=integer(config, "max_position_embeddings"),
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
        activation=_parse_activation(config),
        attention_scale=None if query_scalar is None else query_scalar**-0.5,
        attention_soft_cap=optional_number(config, "attn_logit_softcapping"),
        logit_soft_cap=optional_number(config, "final_logit_softcapping"),
        tie_word_embeddings=flag(config, "tie_word_embeddings"),
        attention_bias=attention_bias,
        attention_output_bias=flag(config, "attention_output_bias", attention_bias),
        mlp_bias=flag(config, "mlp_bias"),
        bos_token_id=integer(config, "bos_token_id", None),
        eos_token_ids=_parse_eos(config),
        stored_dtype=_parse_dtype(config),
    )


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise ModelConfigError("quantization_config is not supported; use the unquantised weights or a GGUF file")
    if config.get("use_bidirectional_attention"):
        raise ModelConfigError("use_bidirectional_attention is not supported; only causal attention is")


def _parse_eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    """One token id, or several."""
    if isinstance(config.get("eos_token_id"), list):
        return tuple(integers(config, "eos_token_id") or ())
    token_id = integer(config, "eos_token_id", None)
    return () if token_id is None else (token_id,)


def _parse_dtype(config: Mapping[str, Any]) -> str | None:
    field = "dtype" if config.get("dtype") else "torch_dtype"
    name = config.get(field)
    if name is not None and not isinstance(name, str):
        raise ModelConfigError(f"{field} must be a name, not {name!r}")
    return name


def _parse_activation(config: Mapping[str, Any]) -> Activation:
    field = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    name = config.get(field) or "silu"
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ModelConfigError(f"{field} {name!r} is not supported; use one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _parse_layers(config: Mapping[str, Any], architecture: str) -> tuple[LayerConfig, ...]:
    count = integer(config, "num_hidden_layers")
    if not 1 <= count <= MAX_LAYERS:
        raise ModelConfigError(f"num_hidden_layers must be from 1 to {MAX_LAYERS}, not {count}")
    rotates = _rotating_layers(config, architecture, count)
    kinds = _layer_kinds(config, architecture, rotates)
    uses_window = SLIDING in kinds and flag(config, "use_sliding_window", True)
    window = integer(config, "sliding_window", None) if uses_window else None
    ropes = parse_ropes(config, set(kinds), architecture)
    return tuple(
        LayerConfig(window if kind == SLIDING else None, ropes[kind] if has_rope else None)
        for kind, has_rope in zip(kinds, rotates, strict=True)
    )


def _rotating_layers(config: Mapping[str, Any], architecture: str, count: int) -> list[bool]:
    """Which layers rotate. In `no_rope_layers` it is a 1 that says so, whatever its name suggests."""
    if architecture != "SmolLM3ForCausalLM":
        return [True] * count
    given = integers(config, "no_rope_layers")
    if given is None:
        interval = integer(config, "no_rope_layer_interval")
        if interval < 1:
            raise ModelConfigError(f"no_rope_layer_interval must be at least 1, not {interval}")
        return [(i + 1) % interval != 0 for i in range(count)]
    if len(given) < count:
        raise ModelConfigError(f"no_rope_layers has {len(given)} entries; num_hidden_layers is {count}")
    return [bool(rotates) for rotates in given[:count]]


def _layer_kinds(config: Mapping[str, Any], architecture: str, rotates: list[bool]) -> list[str]:
    """Which layers have a sliding window: as listed, or by the family's rule."""
    count = len(rotates)
    if architecture in ("LlamaForCausalLM", "Olmo2ForCausalLM"):
        return [FULL] * count
    if architecture in ("MistralForCausalLM", "Phi3ForCausalLM"):
        return [SLIDING] * count
    listed = config.get("layer_types")
    if listed is not None:
        return _listed_kinds(listed, count)
    if architecture == "Gemma3ForCausalLM":
        pattern = integer(config, "sliding_window_pattern")
        if pattern < 1:
            raise ModelConfigError(f"sliding_window_pattern must be at least 1, not {pattern}")
        return [SLIDING if (i + 1) % pattern else FULL for i in range(count)]
    if not flag(config, "use_sliding_window") or config.get("sliding_window") is None:
        return [FULL] * count
    if architecture == "SmolLM3ForCausalLM":
        return [FULL if has_rope else SLIDING for has_rope in rotates]
    first = integer(config, "max_window_layers")
    return [SLIDING if i >= first else FULL for i in range(count)]


def _listed_kinds(listed: Any, count: int) -> list[str]:
    if not isinstance(listed, list) or len(listed) != count:
        raise ModelConfigError(f"layer_types must be a list of {count} names, one to a layer, not {listed!r}")
    for kind in listed:
        if kind not in (FULL, SLIDING):
            raise ModelConfigError(f"layer_types: {kind!r} is not supported; use {FULL} or {SLIDING}")
    return list(listed)
