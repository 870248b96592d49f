"""What a model is, apart from its weights: parsed from a Hugging Face config.json or from GGUF metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class ModelConfigError(ValueError):
    """A configuration that this worker cannot run; the message names the field, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: base frequency, and how it is stretched for longer contexts."""

    theta: float = 10000.0
    kind: str = "default"
    """default, linear (Chen et al. 2023), llama3 (Llama 3.1), or factors (one divisor per frequency, as in GGUF)."""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    frequency_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. All sizes are positive; num_heads is a multiple of num_kv_heads."""

    architecture: str
    """As Hugging Face names it: a key of `models.registry`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stored_dtype: str | None = None
    """What the checkpoint says of its own precision: float32, float16, bfloat16, or None."""

    def __post_init__(self) -> None:
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ModelConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ModelConfigError(f"head_dim must be even for rotary embedding, not {self.head_dim}")

    @property
    def digest(self) -> str:
        """Hex SHA-256 of every field."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def parse_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """From the object in a config.json. Raises ModelConfigError for what is missing, of another type or unsupported."""
    architectures = config.get("architectures") or ["(none given)"]
    architecture = str(architectures[0])
    hidden_size, num_heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    if num_heads < 1:
        raise ModelConfigError(f"num_attention_heads must be at least 1, not {num_heads}")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelConfigError(f"hidden_act {activation!r} is not supported; only 'silu' is")
    if config.get("quantization_config"):
        raise ModelConfigError("quantization_config is not supported; use the unquantised weights or a GGUF file")
    attention_bias = bool(config.get("attention_bias", False))
    window = _integer(config, "sliding_window", None) if config.get("use_sliding_window", True) else None
    eos = config.get("eos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocab_size=_integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_integer(config, "intermediate_size"),
        num_layers=_integer(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_integer(config, "num_key_value_heads", num_heads),
        head_dim=_integer(config, "head_dim", hidden_size // num_heads),
        max_position_embeddings=_integer(config, "max_position_embeddings"),
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope=_parse_rope(config),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=attention_bias,
        attention_output_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        sliding_window=window,
        bos_token_id=_integer(config, "bos_token_id", None),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
        stored_dtype=config.get("dtype") or config.get("torch_dtype"),
    )


def _parse_rope(config: Mapping[str, Any]) -> RopeConfig:
    """Both spellings: rope_theta beside rope_scaling, and rope_parameters, which holds the two (transformers 5)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = _number(scaling, "rope_theta", _number(config, "rope_theta", 10000.0))
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise ModelConfigError(f"rope scaling {kind!r} is not supported; use one of default, linear, llama3")
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", _number(scaling, "factor"))
    return RopeConfig(
        theta,
        "llama3",
        _number(scaling, "factor"),
        _number(scaling, "low_freq_factor"),
        _number(scaling, "high_freq_factor"),
        _integer(scaling, "original_max_position_embeddings"),
    )


_REQUIRED: Any = object()


def _integer(config: Mapping[str, Any], field: str, default: Any = _REQUIRED) -> Any:
    return _typed(config, field, default, int, "an integer")


def _number(config: Mapping[str, Any], field: str, default: Any = _REQUIRED) -> float:
    return float(_typed(config, field, default, (int, float), "a number"))


def _typed(config: Mapping[str, Any], field: str, default: Any, kinds: Any, noun: str) -> Any:
    value = config.get(field)
    if value is None:
        if default is _REQUIRED:
            raise ModelConfigError(f"{field} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ModelConfigError(f"{field} must be {noun}, not {value!r}")
    return value
