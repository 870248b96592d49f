"""Whether an adapter fits the model that is served, as far as that model's config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.lora_registry.adapters.weights import Module
from shoal.lora_registry.errors import AdapterRefused

_MAX_CONFIG_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """Sizes of a decoder. None: not known, and so not compared."""

    num_layers: int | None = None
    hidden_size: int | None = None
    query_size: int | None = None
    """Heads times their size."""
    key_value_size: int | None = None
    intermediate_size: int | None = None

    def shape_of(self, kind: str) -> tuple[int | None, int | None]:
        """Inputs and outputs of a module, as Llama and its relatives name them."""
        shapes: Mapping[str, tuple[int | None, int | None]] = {
            "q_proj": (self.hidden_size, self.query_size),
            "k_proj": (self.hidden_size, self.key_value_size),
            "v_proj": (self.hidden_size, self.key_value_size),
            "o_proj": (self.query_size, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }
        return shapes.get(kind, (None, None))

    def check(self, modules: Sequence[Module]) -> None:
        """Raises AdapterRefused with both sizes."""
        for module in modules:
            if self.num_layers is not None and module.layer is not None and module.layer >= self.num_layers:
                raise AdapterRefused(f"{module.name}: the base model has layers 0 to {self.num_layers - 1}")
            wanted, got = self.shape_of(module.kind), (module.num_inputs, module.num_outputs)
            if any(size is not None and size != there for size, there in zip(wanted, got, strict=True)):
                expected = " to ".join("any" if size is None else str(size) for size in wanted)
                raise AdapterRefused(
                    f"{module.name}: made for a module of {got[0]} to {got[1]}; the base model's is {expected}"
                )


def read_base_model(path: Path) -> BaseModel:
    """From a config.json, or the folder of one. Raises OSError, ValueError for what is none."""
    path = path / "config.json" if path.is_dir() else path
    with path.open("rb") as file:
        content = file.read(_MAX_CONFIG_BYTES)
    config = msgspec.json.decode(content)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: is no config.json of a model")
    return _facts_of(config.get("text_config") or config)


def _facts_of(config: Mapping[str, Any]) -> BaseModel:
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    key_value_heads = _size(config, "num_key_value_heads") or heads
    head_size = _size(config, "head_dim") or (hidden // heads if heads and hidden else None)
    has_experts = any(config.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return BaseModel(
        num_layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden,
        query_size=heads * head_size if heads and head_size else None,
        key_value_size=key_value_heads * head_size if key_value_heads and head_size else None,
        # Experts have sizes of their own.
        intermediate_size=None if has_experts else _size(config, "intermediate_size"),
    )


def _size(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if type(value) is int and value > 0 else None
