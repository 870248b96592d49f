"""Sizes of the models in `models/`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

NAMES = ("llama-3.1-8b", "qwen3-0.6b", "smollm2-135m")


@dataclass(frozen=True, slots=True)
class Weight:
    """A model's weight [out_features, in_features]."""

    name: str
    out_features: int
    in_features: int
    is_logits: bool = False
    """Its products are float32."""

    @property
    def num_bytes(self) -> int:
        """In bfloat16."""
        return 2 * self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What kernels see of a model."""

    name: str
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Those of a layer, and the one of the logits."""
        heads = self.num_heads * self.head_dim
        return (
            Weight("qkv", heads + 2 * self.num_kv_heads * self.head_dim, self.hidden),
            Weight("o", self.hidden, heads),
            Weight("gate_up", 2 * self.intermediate, self.hidden),
            Weight("down", self.hidden, self.intermediate),
            Weight("logits", self.vocab_size, self.hidden, is_logits=True),
        )


def load_shapes() -> tuple[ModelShape, ...]:
    """The largest model first."""
    return tuple(_load(name) for name in NAMES)


def _load(name: str) -> ModelShape:
    config = json.loads((Path(__file__).resolve().parent / "models" / f"{name}.json").read_text())
    num_heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return ModelShape(
        name,
        hidden,
        config["intermediate_size"],
        num_heads,
        config["num_key_value_heads"],
        config.get("head_dim", hidden // num_heads),
        config["vocab_size"],
    )
