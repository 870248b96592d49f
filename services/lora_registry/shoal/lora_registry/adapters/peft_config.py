"""Reads adapter_config.json, as PEFT writes it, and refuses what would not be served as it was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from shoal.artifacts import ADAPTER_FILES
from shoal.lora_registry.errors import AdapterRefused

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILES
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_RANK: Final = 512
_IGNORED: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
        "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
    }
)  # fmt: skip
"""Of training, or said by the tensors' names as well."""
_READ: Final = frozenset({"init_lora_weights", "lora_alpha", "peft_type", "r", "target_modules", "use_rslora"})
_REFUSED: Final[Mapping[str, str]] = {
    "use_dora": "DoRA scales the base model's weights, too; train without it",
    "use_qalora": "QA-LoRA pools the inputs of a quantized base model; train without it",
    "lora_bias": "B has a bias; train without it",
    "modules_to_save": "whole modules would replace the base model's; merge them into the base model",
    "rank_pattern": "modules have several ranks; train with one",
    "alpha_pattern": "modules have several scalings; train with one",
    "fan_in_fan_out": "the base model's weights lie the other way round; none that is served has such",
    "layer_replication": "the base model would have other layers; merge it",
    "target_parameters": "parameters that are no modules are adapted; give target_modules",
    "trainable_token_indices": "embeddings of the base model were trained, too; train without it",
    "alora_invocation_tokens": "it applies to a part of the prompt only; train a LoRA",
    "arrow_config": "it routes between adapters; publish each by itself",
}
"""Field -> why a value that is not empty is refused."""
_CHANGES_BASE: Final = ("corda", "loftq", "lora_ga", "olora", "pissa")
"""Initializations that take something off the base model's weights, so that the adapter fits no other."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What of it concerns serving."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...] | None
    """None: the config has a pattern, or a word for them; the tensors' names say which they are."""
    base_model: str

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def read_peft_config(path: Path) -> PeftConfig:
    """Raises AdapterRefused naming the field, OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise AdapterRefused(f"{CONFIG_FILE}: more than {MAX_CONFIG_BYTES} bytes, which no adapter's has")
    try:
        config = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterRefused(f"{CONFIG_FILE}: is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterRefused(f"{CONFIG_FILE}: expected an object, found {type(config).__name__}")
    return _read(config)


def _read(config: Mapping[str, Any]) -> PeftConfig:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterRefused(f"{CONFIG_FILE}: peft_type: {_show(kind)}; only LORA is served")
    _refuse(config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterRefused(f"{CONFIG_FILE}: r: {_show(rank)}; a rank is 1 to {MAX_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1 << 20:
        raise AdapterRefused(f"{CONFIG_FILE}: lora_alpha: {_show(alpha)}; expected a number above 0, up to {1 << 20}")
    use_rslora = config.get("use_rslora") or False
    if not isinstance(use_rslora, bool):
        raise AdapterRefused(f"{CONFIG_FILE}: use_rslora: {_show(use_rslora)}; expected true or false")
    base_model = config.get("base_model_name_or_path")
    return PeftConfig(
        rank=rank,
        alpha=float(alpha),
        use_rslora=use_rslora,
        target_modules=_target_modules(config.get("target_modules")),
        base_model=base_model[:256] if isinstance(base_model, str) else "",
    )


def _refuse(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if name in _REFUSED and value:
            raise AdapterRefused(f"{CONFIG_FILE}: {name}: {_show(value)}: {_REFUSED[name]}")
    bias = config.get("bias") or "none"
    if bias != "none":
        raise AdapterRefused(f"{CONFIG_FILE}: bias: {_show(bias)}: biases would be trained, too; train with 'none'")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        remedy = "convert it with PEFT's path_initial_model_for_weight_conversion"
        raise AdapterRefused(
            f"{CONFIG_FILE}: init_lora_weights: {_show(start)} changed the weights that it was trained on; {remedy}"
        )
    known = _IGNORED | _READ | _REFUSED.keys() | {"bias"}
    for name, value in config.items():
        if name not in known and value:  # what is off in this version of PEFT changes nothing
            raise AdapterRefused(
                f"{CONFIG_FILE}: {_show(name)}: {_show(value)}: not known here, and so not served as it was trained"
            )


def _target_modules(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):  # a pattern of somebody else's is not run here
        return None
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise AdapterRefused(f"{CONFIG_FILE}: target_modules: {_show(value)}; expected names of modules")
    return tuple(sorted(set(value)))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
