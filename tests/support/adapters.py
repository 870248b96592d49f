"""LoRA adapters in PEFT's layout, as small as they can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHAPES = {"q_proj": (16, 16), "v_proj": (16, 8)}
"""Inputs and outputs."""


def adapter_config(rank: int = 4, **changes: Any) -> dict[str, Any]:
    """As PEFT 0.18 writes it; None takes a field away."""
    config: dict[str, Any] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "org/tiny",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.18.0",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }
    return {name: value for name, value in (config | changes).items() if value != "absent"}


def adapter_tensors(rank: int = 4, seed: int = 0, num_layers: int = 2, dtype: Any = np.float16) -> dict[str, Any]:
    """A of [rank, inputs] and B of [outputs, rank] of each module."""
    order = np.random.default_rng(seed)
    tensors = {}
    for layer in range(num_layers):
        for module, (num_inputs, num_outputs) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{prefix}.lora_A.weight"] = order.standard_normal((rank, num_inputs)).astype(dtype)
            tensors[f"{prefix}.lora_B.weight"] = order.standard_normal((num_outputs, rank)).astype(dtype)
    return tensors


def write_adapter(
    folder: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    num_layers: int = 2,
    tensors: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """The folder, which is made. `changes`: of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(adapter_config(rank, **changes)))
    save_file(dict(tensors or adapter_tensors(rank, seed, num_layers)), folder / WEIGHTS)
    return folder


def adapter_files(folder: Path) -> dict[str, Path]:
    """Both of a folder, by name."""
    return {name: folder / name for name in (CONFIG, WEIGHTS)}
