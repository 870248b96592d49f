"""What a model is, apart from its weights: parsed from a Hugging Face config.json or from GGUF metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Literal, get_args


class ModelConfigError(ValueError):
    """A configuration that this worker cannot run; the message names the field, its value and what is allowed."""


MAX_LAYERS = 4096
"""More is taken for damage: parsing makes an entry for each."""

_SMALLEST, _LARGEST = 1e-6, 1e12
"""Of numbers that angles are computed from: far beyond all use, and far from what overflows."""

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "factors")
Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: base frequency, how much of a head is rotated, and how it is stretched for longer contexts."""

    theta: float = 10000.0
    kind: str = "default"
    """default; linear (Chen et al. 2023); dynamic (NTK-aware); llama3 (Llama 3.1); yarn (Peng et al. 2023); longrope
    (Ding et al. 2024); or factors (one divisor per frequency, as in GGUF). `layers.rotary` has the formulas."""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    frequency_factors: tuple[float, ...] = ()
    """One divisor per frequency; of longrope, those for contexts longer than the original one."""
    short_frequency_factors: tuple[float, ...] = ()
    """Of longrope: those for contexts up to the original one."""
    partial_rotary_factor: float = 1.0
    """The leading share of a head's dimensions that is rotated."""
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by it (yarn, longrope)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Of yarn: whether the ramp begins and ends at whole dimensions."""

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ModelConfigError(f"rope kind {self.kind!r} is not supported; use one of {', '.join(ROPE_KINDS)}")
        for name in ("theta", "factor", "original_max_position", "attention_factor", "beta_fast", "beta_slow"):
            if not _SMALLEST <= getattr(self, name) <= _LARGEST:
                raise ModelConfigError(
                    f"rope {name} must be between {_SMALLEST:g} and {_LARGEST:g}, not {getattr(self, name)}"
                )
        if self.theta == 1:
            raise ModelConfigError("rope theta must not be 1: all frequencies would be the same")
        if not self.high_freq_factor > self.low_freq_factor:
            raise ModelConfigError(
                f"rope high_freq_factor ({self.high_freq_factor}) must be more than low_freq_factor "
                f"({self.low_freq_factor})"
            )
        if not all(_SMALLEST <= f <= _LARGEST for f in self.frequency_factors + self.short_frequency_factors):
            raise ModelConfigError(f"rope frequency factors must be between {_SMALLEST:g} and {_LARGEST:g}")
        if not 0 < self.partial_rotary_factor <= 1:
            raise ModelConfigError(f"partial_rotary_factor must be in (0, 1], not {self.partial_rotary_factor}")

    def rotary_dim(self, head_dim: int) -> int:
        """How many dimensions of a head are rotated."""
        return int(head_dim * self.partial_rotary_factor)

    @property
    def stretched_length(self) -> int:
        """Tokens up to which yarn stretches: files ask for it without raising max_position_embeddings. Else 0."""
        return int(self.original_max_position * self.factor) if self.kind == "yarn" else 0

    def limited_to(self, max_model_len: int) -> RopeConfig:
        """See `ModelConfig.limited_to`."""
        if self.kind != "longrope" or max_model_len > self.original_max_position:
            return self
        short = self.short_frequency_factors
        return dataclasses.replace(self, kind="factors", frequency_factors=short, short_frequency_factors=())


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ between the layers of a model."""

    sliding_window: int | None = None
    """A token sees itself and this many minus one before it; None: all."""
    rope: RopeConfig | None = RopeConfig()
    """None: queries and keys are not rotated."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only transformer. All sizes are positive; num_heads is a multiple of num_kv_heads."""

    architecture: str
    """As Hugging Face names it: a key of `models.registry`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[LayerConfig, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    """The longest context; with yarn in use, raised to what that stretches to."""
    rms_norm_eps: float = 1e-6
    activation: Activation = "silu"
    """Of the feed-forward's gate."""
    attention_scale: float | None = None
    """Factor of q . k; None: head_dim ** -0.5."""
    attention_soft_cap: float | None = None
    """Scores become cap * tanh(score / cap); None: they stay."""
    logit_soft_cap: float | None = None
    """The same for logits."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Of q, k and v."""
    attention_output_bias: bool = False
    mlp_bias: bool = False
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
        if self.activation not in ACTIVATIONS:
            raise ModelConfigError(f"activation {self.activation!r} is not supported; use {' or '.join(ACTIVATIONS)}")
        for layer in set(self.layers):
            self._check_layer(layer)
        stretched = max(layer.rope.stretched_length if layer.rope else 0 for layer in self.layers)
        object.__setattr__(self, "max_position_embeddings", max(self.max_position_embeddings, stretched))
        for name in ("attention_scale", "attention_soft_cap", "logit_soft_cap"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ModelConfigError(f"{name} must be positive, not {getattr(self, name)}")

    def _check_layer(self, layer: LayerConfig) -> None:
        if layer.sliding_window is not None and layer.sliding_window < 1:
            raise ModelConfigError(f"sliding_window must be at least 1, not {layer.sliding_window}")
        if self.head_dim % 2:
            raise ModelConfigError(f"head_dim must be even for rotary embedding, not {self.head_dim}")
        if layer.rope is None:
            return
        rotary_dim = layer.rope.rotary_dim(self.head_dim)
        if rotary_dim < 2 or rotary_dim % 2:
            raise ModelConfigError(
                f"partial_rotary_factor ({layer.rope.partial_rotary_factor}) of head_dim ({self.head_dim}) must be an "
                f"even number of dimensions, not {rotary_dim}"
            )

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def score_scale(self) -> float:
        """Factor of q . k."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def limited_to(self, max_model_len: int) -> ModelConfig:
        """The same model for contexts of at most that many tokens.

        That changes longrope, whose long factors spoil short contexts a little: it rotates as in its original context
        where no sequence will ever be longer.
        """
        layers = tuple(
            dataclasses.replace(layer, rope=layer.rope.limited_to(max_model_len)) if layer.rope else layer
            for layer in self.layers
        )
        return dataclasses.replace(self, layers=layers)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of every field."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def yarn_attention_factor(factor: float, multiplier: float = 1.0) -> float:
    """What yarn scales attention by when contexts are stretched by `factor` (Peng et al. 2023)."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0


def longrope_attention_factor(factor: float, original: int) -> float:
    """What longrope scales attention by when `original` positions are stretched by `factor` (Ding et al. 2024)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
