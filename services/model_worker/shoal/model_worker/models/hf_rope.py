"""The rotary embeddings that a config.json asks for, in all its spellings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.model_worker.models.config import (
    ModelConfigError,
    RopeConfig,
    longrope_attention_factor,
    yarn_attention_factor,
)
from shoal.model_worker.models.hf_fields import flag, integer, number, numbers, optional_number

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def parse_ropes(config: Mapping[str, Any], layer_kinds: set[str], architecture: str) -> dict[str, RopeConfig]:
    """The rotary embedding of each kind of layer.

    Three spellings: rope_theta beside rope_scaling; rope_parameters, which holds both (transformers 5); and the same
    once per kind of layer. Gemma 3 used to give rope_local_base_freq for its sliding layers, which are never scaled.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise ModelConfigError(f"rope_parameters must be an object, not {parameters!r}")
    nested = any(kind in parameters for kind in ("full_attention", "sliding_attention"))
    ropes = {}
    for kind in layer_kinds:
        own = (parameters.get(kind) or {}) if nested else parameters
        if not isinstance(own, Mapping):
            raise ModelConfigError(f"rope_parameters.{kind} must be an object, not {own!r}")
        theta = number(config, "rope_theta", 10000.0)
        if architecture == "Gemma3ForCausalLM" and kind == "sliding_attention":
            own, theta = own if nested else {}, number(config, "rope_local_base_freq")
        ropes[kind] = _parse_rope(config, own, theta, architecture)
    return ropes


def _parse_rope(config: Mapping[str, Any], own: Mapping[str, Any], theta: float, architecture: str) -> RopeConfig:
    kind = own.get("rope_type") or own.get("type") or "default"
    if architecture == "Phi3ForCausalLM" and kind in ("su", "yarn"):
        kind = "longrope"  # what early Phi-3 files called it
    if kind not in _KINDS:
        raise ModelConfigError(f"rope scaling {kind!r} is not supported; use one of {', '.join(_KINDS)}")
    theta = number(own, "rope_theta", theta)
    partial = number(own, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0))
    if kind == "default":
        return RopeConfig(theta, partial_rotary_factor=partial)
    max_position = integer(config, "max_position_embeddings")
    if kind == "dynamic":
        return RopeConfig(
            theta, kind, number(own, "factor"), original_max_position=max_position, partial_rotary_factor=partial
        )
    if kind == "linear":
        return RopeConfig(theta, kind, number(own, "factor"), partial_rotary_factor=partial)
    original = integer(
        config, "original_max_position_embeddings", integer(own, "original_max_position_embeddings", max_position)
    )
    if original < 2:
        raise ModelConfigError(f"original_max_position_embeddings must be at least 2, not {original}")
    if kind == "llama3":
        return RopeConfig(
            theta,
            kind,
            number(own, "factor"),
            number(own, "low_freq_factor"),
            number(own, "high_freq_factor"),
            original,
            partial_rotary_factor=partial,
        )
    factor = number(own, "factor", max_position / original)
    if kind == "yarn":
        return _parse_yarn(own, theta, factor, original, partial)
    return RopeConfig(
        theta,
        kind,
        factor,
        original_max_position=original,
        frequency_factors=numbers(own, "long_factor"),
        short_frequency_factors=numbers(own, "short_factor"),
        partial_rotary_factor=partial,
        attention_factor=number(own, "attention_factor", longrope_attention_factor(factor, original)),
    )


def _parse_yarn(own: Mapping[str, Any], theta: float, factor: float, original: int, partial: float) -> RopeConfig:
    attention_factor = optional_number(own, "attention_factor")
    if attention_factor is None:
        scale, over = optional_number(own, "mscale"), optional_number(own, "mscale_all_dim")
        both = bool(scale and over)
        attention_factor = yarn_attention_factor(factor, scale if both and scale else 1.0)
        attention_factor /= yarn_attention_factor(factor, over) if both and over else 1.0
    return RopeConfig(
        theta,
        "yarn",
        factor,
        original_max_position=original,
        partial_rotary_factor=partial,
        attention_factor=attention_factor,
        beta_fast=number(own, "beta_fast", 32.0) or 32.0,
        beta_slow=number(own, "beta_slow", 1.0) or 1.0,
        truncate=flag(own, "truncate", True),
    )
