from __future__ import annotations

from typing import Any

import pytest

from shoal.model_worker.layers.rotary import rotary_table
from shoal.model_worker.models.config import LayerConfig, ModelConfigError, RopeConfig
from shoal.model_worker.models.hf_config import parse_hf_config
from shoal.model_worker.models.registry import ARCHITECTURES, find_model_class

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "eos_token_id": [1, 2],
    "rope_theta": 500000.0,
}


def test_defaults_and_old_spellings() -> None:
    config = parse_hf_config({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}, "torch_dtype": "bfloat16"})
    assert (config.num_kv_heads, config.head_dim, config.eos_token_ids) == (4, 16, (1, 2))
    assert config.layers == (LayerConfig(None, RopeConfig(500000.0, "linear", 2.0)),) * 2
    assert config.stored_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": "many"}, "vocab_size must be an integer, not 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, not 0"),
        ({"num_key_value_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        (
            {"rope_scaling": {"rope_type": "spiral", "factor": 2}},
            "rope scaling 'spiral' is not supported; use one of .*yarn",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config is not supported"),
    ],
)
def test_what_cannot_run_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        parse_hf_config({**LLAMA, **change})


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ModelConfigError, match=r"GPT2LMHeadModel is not supported; known .*LlamaForCausalLM"):
        find_model_class("GPT2LMHeadModel")
    with pytest.raises(ModelConfigError, match=r"GPT2LMHeadModel is not supported; known .*LlamaForCausalLM"):
        parse_hf_config({**LLAMA, "architectures": ["GPT2LMHeadModel"]})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_registered_class_exists(architecture: str) -> None:
    assert find_model_class(architecture).tensor_shapes(parse_hf_config({**LLAMA, "architectures": [architecture]}))


def test_digest_depends_on_every_field() -> None:
    base = parse_hf_config(LLAMA)
    assert base.digest == parse_hf_config(dict(LLAMA)).digest
    assert base.digest != parse_hf_config({**LLAMA, "rms_norm_eps": 1e-5}).digest


def test_frequency_factors_must_fit() -> None:
    table = rotary_table(RopeConfig(kind="factors", frequency_factors=(1.0, 2.0)), 4, 3)
    assert table.shape == (3, 4)
    with pytest.raises(ModelConfigError, match=r"2 frequency factors; need 8"):
        rotary_table(RopeConfig(kind="factors", frequency_factors=(1.0, 2.0)), 16, 3)
    with pytest.raises(ModelConfigError, match=r"rope kind 'spiral' is not supported; use one of default"):
        RopeConfig(kind="spiral")
