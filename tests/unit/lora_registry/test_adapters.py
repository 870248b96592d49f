"""What is taken as an adapter, what is refused, and what its digest commits to."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.lora_registry.adapters import BaseModel, inspect, read_base_model
from shoal.lora_registry.errors import AdapterRefused
from support.adapters import CONFIG, WEIGHTS, adapter_config, adapter_tensors, write_adapter

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
FITTING = BaseModel(num_layers=2, hidden_size=16, query_size=16, key_value_size=8)


def test_facts_are_those_of_its_files(tmp_path: Path) -> None:
    adapter = inspect(write_adapter(tmp_path / "a"), FITTING)
    assert (adapter.rank, adapter.alpha, adapter.scaling, adapter.dtype) == (4, 8.0, 2.0, "F16")
    assert adapter.target_modules == ("q_proj", "v_proj")
    assert adapter.num_parameters == 2 * 4 * (16 + 16 + 16 + 8)
    assert (adapter.base_model, adapter.min_num_layers, adapter.hidden_size) == ("org/tiny", 2, 16)
    assert inspect(write_adapter(tmp_path / "b", use_rslora=True)).scaling == 8 / math.sqrt(4)


def test_the_digest_is_of_what_it_does_and_of_nothing_else(tmp_path: Path) -> None:
    digest = inspect(write_adapter(tmp_path / "a")).digest
    same: list[dict[str, Any]] = [
        {},
        {"lora_dropout": 0.5, "task_type": None, "base_model_name_or_path": "elsewhere"},
        {"target_modules": "all-linear"},
        {"tensors": dict(reversed(list(adapter_tensors().items())))},
        {"peft_version": "absent"},
    ]
    for number, changes in enumerate(same):
        assert inspect(write_adapter(tmp_path / f"same{number}", **changes)).digest == digest
    other: list[dict[str, Any]] = [
        {"lora_alpha": 12},
        {"use_rslora": True},
        {"seed": 1},
        {"rank": 2},
        {"num_layers": 1},
        {"tensors": {name: tensor.astype(np.float32) for name, tensor in adapter_tensors().items()}},
        {"tensors": {name.replace("layers.1", "layers.3"): each for name, each in adapter_tensors().items()}},
    ]
    digests = {inspect(write_adapter(tmp_path / f"other{number}", **each)).digest for number, each in enumerate(other)}
    assert len(digests | {digest}) == len(other) + 1


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"peft_type": "IA3"}, "peft_type: 'IA3'; only LORA is served"),
        ({"peft_type": "absent"}, "peft_type: None"),
        ({"r": 0}, "r: 0; a rank is 1 to 512"),
        ({"r": True}, "r: True"),
        ({"r": 4.0}, r"r: 4\.0"),
        ({"r": 8}, r"shape \[4, 16\]; for r = 8 it is \[8, inputs\]"),
        ({"lora_alpha": "8"}, "lora_alpha: '8'; expected a number above 0"),
        ({"lora_alpha": -1}, "lora_alpha: -1"),
        ({"use_rslora": "yes"}, "use_rslora: 'yes'"),
        ({"use_dora": True}, "use_dora: True: DoRA"),
        ({"bias": "lora_only"}, "bias: 'lora_only': biases would be trained"),
        ({"lora_bias": True}, "lora_bias: True: B has a bias"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]: whole modules"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern: .*several ranks"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern: .*several scalings"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16' changed the weights that it was trained on"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"use_something_of_2027": {"a": 1}}, "'use_something_of_2027': {'a': 1}: not known here"),
        ({"target_modules": []}, r"target_modules: \[\]; expected names"),
        ({"target_modules": ["q_proj"]}, r"v_proj is none of .*target_modules \(q_proj\)"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "has no tensors of o_proj"),
        ({"target_modules": ["roj", "v_proj"]}, "q_proj is none of"),
    ],
)
def test_configs_that_would_not_be_served_as_trained_are_refused(
    tmp_path: Path, changes: dict[str, Any], refusal: str
) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / CONFIG).write_text(json.dumps(adapter_config() | {k: v for k, v in changes.items() if v != "absent"}))
    if "absent" in changes.values():
        (folder / CONFIG).write_text(json.dumps(adapter_config(**changes)))
    with pytest.raises(AdapterRefused, match=refusal):
        inspect(folder)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", None])
def test_other_initializations_leave_the_base_model_alone(tmp_path: Path, start: object) -> None:
    inspect(write_adapter(tmp_path / "a", init_lora_weights=start))


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    for content, refusal in ((b"{", "no JSON"), (b"[]", "expected an object"), (b" " * (1 << 20 | 1), "more than")):
        (folder / CONFIG).write_bytes(content)
        with pytest.raises(AdapterRefused, match=refusal):
            inspect(folder)
    (folder / CONFIG).write_bytes(b"[" * 100_000)
    with pytest.raises(AdapterRefused, match="no JSON"):
        inspect(folder)


def without(name: str) -> dict[str, Any]:
    return {each: tensor for each, tensor in adapter_tensors().items() if each != name}


def with_one(name: str, tensor: Any) -> dict[str, Any]:
    return adapter_tensors() | {name: tensor}


HALF = np.float16


@pytest.mark.parametrize(
    ("tensors", "refusal"),
    [
        (without(f"{Q0}.lora_B.weight"), r"layers\.0\.self_attn\.q_proj has no lora_B"),
        (with_one(f"{Q0}.lora_A.weight", np.zeros((3, 16), HALF)), r"shape \[3, 16\]; for r = 4 it is \[4, inputs\]"),
        (with_one(f"{Q0}.lora_B.weight", np.zeros((16, 5), HALF)), r"shape \[16, 5\]; for r = 4 it is \[outputs, 4\]"),
        (with_one(f"{Q0}.lora_B.weight", np.zeros(4, HALF)), r"shape \[4\]"),
        (with_one(f"{Q0}.lora_A.weight", np.zeros((4, 24), HALF)), "is 16 to 16, but .* is 24 to 16: no model has"),
        (with_one(f"{Q0}.lora_A.weight", np.zeros((4, 16), np.float32)), "tensors of F16 and F32"),
        (with_one(f"{Q0}.lora_A.weight", np.zeros((4, 16), np.int8)), "I8; known: F32, F16, BF16"),
        (with_one(f"{Q0}.lora_A.weight", np.full((4, 16), np.inf, HALF)), "has infinities or NaN"),
        (with_one(f"{Q0}.lora_B.weight", np.full((16, 4), np.nan, HALF)), "has infinities or NaN"),
        (with_one(f"{Q0}.lora_magnitude_vector", np.zeros(16, HALF)), "neither .* it is of DoRA"),
        (with_one(f"{Q0}.base_layer.weight", np.zeros((16, 16), HALF)), "is neither MODULE.lora_A.weight"),
        (with_one(f"{Q0.removeprefix('base_model.model.')}.lora_A.weight", np.zeros((4, 16), HALF)), "there twice"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(tmp_path: Path, tensors: dict[str, Any], refusal: str) -> None:
    with pytest.raises(AdapterRefused, match=refusal):
        inspect(write_adapter(tmp_path / "a", tensors=tensors))


class _Exploit:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["SHOAL_TEST_EXPLOITED"],)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, exploited = write_adapter(tmp_path / "a"), tmp_path / "exploited"
    monkeypatch.setenv("SHOAL_TEST_EXPLOITED", str(exploited))
    (folder / WEIGHTS).write_bytes(pickle.dumps({"x": _Exploit()}))
    with pytest.raises(AdapterRefused, match="is a pickle"):
        inspect(folder)
    (folder / WEIGHTS).write_bytes(b"PK\x03\x04" + bytes(100))  # as torch.save writes it
    with pytest.raises(AdapterRefused, match="is a pickle"):
        inspect(folder)
    assert not exploited.exists()
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"PK")
    with pytest.raises(AdapterRefused, match=f"{WEIGHTS} is missing"):
        inspect(folder)


def test_files_that_were_cut_or_lie_about_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    whole = (folder / WEIGHTS).read_bytes()
    for content in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", struct.pack("<Q", 1 << 40) + whole[8:]):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(AdapterRefused):
            inspect(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_bytes_are_it_is_an_adapter_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    folder = write_adapter(tmp_path / "a", num_layers=1)
    digest = inspect(folder).digest
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    content = bytearray((folder / name).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    try:
        changed = inspect(folder).digest
    except AdapterRefused:
        return
    if name == WEIGHTS and position >= header_bytes:
        assert changed != digest, "every byte of a tensor counts"


@pytest.mark.parametrize(
    ("base_model", "refusal"),
    [
        (BaseModel(num_layers=1), r"layers\.1\.self_attn\.q_proj: the base model has layers 0 to 0"),
        (BaseModel(hidden_size=32), r"a module of 16 to 16; the base model's is 32 to any"),
        (BaseModel(hidden_size=16, key_value_size=16), "a module of 16 to 8; the base model's is 16 to 16"),
    ],
)
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, base_model: BaseModel, refusal: str) -> None:
    with pytest.raises(AdapterRefused, match=refusal):
        inspect(write_adapter(tmp_path / "a"), base_model)


def test_a_base_model_is_what_its_config_says(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    expected = BaseModel(num_layers=2, hidden_size=16, query_size=16, key_value_size=8, intermediate_size=64)
    assert read_base_model(tmp_path) == read_base_model(tmp_path / "config.json") == expected
    moe = {"text_config": config | {"head_dim": 32, "num_experts": 8, "intermediate_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(moe))
    assert read_base_model(tmp_path) == BaseModel(num_layers=2, hidden_size=16, query_size=128, key_value_size=64)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="is no config"):
        read_base_model(tmp_path)
