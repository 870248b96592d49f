from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from shoal.model_worker.layers.rotary import rotary_table
from shoal.model_worker.models.config import ROPE_KINDS, LayerConfig, ModelConfigError, RopeConfig
from shoal.model_worker.models.hf_config import parse_hf_config
from shoal.model_worker.models.registry import ARCHITECTURES, find_model_class
from support.published_configs import PUBLISHED

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
        ({"num_hidden_layers": 0}, "num_hidden_layers must be from 1 to 4096, not 0"),
        ({"num_key_value_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        (
            {"rope_scaling": {"rope_type": "spiral", "factor": 2}},
            "rope scaling 'spiral' is not supported; use one of .*yarn",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": "none"}, "rope_parameters must be an object, not 'none'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "long_factor is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "rope factor must be between 1e-06 and 1e.12, not 0"),
        ({"partial_rotary_factor": 0.2}, r"partial_rotary_factor \(0.2\) of head_dim \(16\) must be an even number"),
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor must be in \(0, 1\], not 1.5"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false, not 'yes'"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window must be at least 1, not 0"),
        ({"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}, "layer_types must be a list of 2"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
            "layer_types: 'linear_attention' is not supported; use full_attention or sliding_attention",
        ),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, "no_rope_layers has 1 entries"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layer_interval": 0}, "no_rope_layer_interval must be at"),
        ({"architectures": ["Gemma3ForCausalLM"], "sliding_window_pattern": 0}, "sliding_window_pattern must be at"),
        ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}, "only causal attention is"),
        ({"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": -1}, "attention_soft_cap must be positive"),
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_mean_what_transformers_makes_of_them(name: str, tmp_path: Path) -> None:
    """Read by transformers and written in its current spelling, a file still describes the same model."""
    AutoConfig.for_model(**copy.deepcopy(PUBLISHED[name])).save_pretrained(tmp_path)
    rewritten = json.loads((tmp_path / "config.json").read_text())
    assert rewritten["architectures"] == PUBLISHED[name]["architectures"]
    assert parse_hf_config(PUBLISHED[name]) == parse_hf_config(rewritten)


def test_per_layer_choices() -> None:
    gemma = parse_hf_config(PUBLISHED["gemma-3-1b-it"])
    assert [layer.sliding_window for layer in gemma.layers[:7]] == [512] * 5 + [None, 512]
    assert [layer.rope.theta for layer in gemma.layers[4:6] if layer.rope] == [10000.0, 1000000.0]
    assert (gemma.activation, gemma.score_scale, gemma.tie_word_embeddings) == ("gelu_tanh", 1 / 16, True)
    smollm3 = parse_hf_config(PUBLISHED["SmolLM3-3B"])
    assert [layer.rope is None for layer in smollm3.layers[:5]] == [False, False, False, True, False]
    qwen = {**PUBLISHED["Qwen2.5-7B-Instruct"], "use_sliding_window": True, "max_window_layers": 26}
    windows = [layer.sliding_window for layer in parse_hf_config(qwen).layers]
    assert windows == [None] * 26 + [131072] * 2
    qwen["layer_types"] = ["sliding_attention"] + ["full_attention"] * 27
    assert [layer.sliding_window for layer in parse_hf_config(qwen).layers] == [131072] + [None] * 27


def test_early_phi3_names_of_longrope() -> None:
    published = PUBLISHED["Phi-3-mini-128k-instruct"]
    expected = parse_hf_config(published)
    assert expected.layers[0].rope is not None
    assert expected.layers[0].rope.attention_factor == pytest.approx((1 + math.log(32) / math.log(4096)) ** 0.5)
    for name in ("su", "yarn"):
        early = {**published, "rope_scaling": {**published["rope_scaling"], "type": name}}
        assert parse_hf_config(early) == expected


def test_yarn_extends_the_context() -> None:
    """As the Qwen 2.5 model card tells to do it."""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = parse_hf_config({**PUBLISHED["Qwen2.5-7B-Instruct"], "rope_scaling": yarn})
    assert config.max_position_embeddings == 131072
    assert config.layers[0].rope is not None
    assert config.layers[0].rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_equal_files_have_equal_digests() -> None:
    assert parse_hf_config(LLAMA).digest == parse_hf_config(dict(LLAMA)).digest


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Llama-3.1-8B", {"rms_norm_eps": 1e-4}),
        ("Llama-3.1-8B", {"rope_theta": 1e6}),
        ("Llama-3.1-8B", {"rope_scaling": None}),
        ("Llama-3.1-8B", {"rope_scaling": YARN}),
        ("Llama-3.1-8B", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("Llama-3.1-8B", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("Mistral-7B-v0.1", {"sliding_window": 1024}),
        ("Qwen2.5-7B-Instruct", {"use_sliding_window": True, "max_window_layers": 20}),
        ("Phi-4-mini-instruct", {"partial_rotary_factor": 0.5}),
        ("Phi-4-mini-instruct", {"original_max_position_embeddings": 2048}),
        ("SmolLM3-3B", {"no_rope_layers": [1] * 36}),
        ("gemma-3-1b-it", {"query_pre_attn_scalar": 128}),
        ("gemma-3-1b-it", {"attn_logit_softcapping": 50.0}),
        ("gemma-3-1b-it", {"final_logit_softcapping": 30.0}),
        ("gemma-3-1b-it", {"rope_local_base_freq": 20000}),
        ("gemma-3-1b-it", {"sliding_window_pattern": 5}),
        ("gemma-3-1b-it", {"hidden_activation": "silu"}),
        ("gemma-3-1b-it", {"tie_word_embeddings": False}),
    ],
)
def test_digest_depends_on_every_field(name: str, change: dict[str, Any]) -> None:
    assert parse_hf_config({**PUBLISHED[name], **change}).digest != parse_hf_config(PUBLISHED[name]).digest


@pytest.mark.parametrize(
    "change",
    [
        {"factor": 8.0},
        {"beta_fast": 16},
        {"beta_slow": 2},
        {"truncate": False},
        {"attention_factor": 1.5},
        {"mscale": 2.0, "mscale_all_dim": 1.0},
        {"original_max_position_embeddings": 128},
    ],
)
def test_digest_depends_on_every_field_of_yarn(change: dict[str, Any]) -> None:
    base, changed = ({**LLAMA, "rope_scaling": {**YARN, **own}} for own in ({}, change))
    assert parse_hf_config(base).digest != parse_hf_config(changed).digest


_JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(0, 3), max_size=3)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_file_raises_another_error(data: st.DataObject) -> None:
    """Whatever a field holds: there is a configuration, of which angles can be computed, or ModelConfigError."""
    config = copy.deepcopy(PUBLISHED[data.draw(st.sampled_from(sorted(PUBLISHED)))])
    config["max_position_embeddings"] = 4096  # tables of it are made below
    scaling = {"rope_type": data.draw(st.sampled_from(ROPE_KINDS)), "factor": 4.0}
    config["rope_scaling"] = config.get("rope_scaling") or scaling
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([config, config["rope_scaling"] or scaling]))
        if isinstance(place, dict):
            place[data.draw(st.sampled_from(sorted({*place, *_OPTIONAL})))] = data.draw(_JUNK)
    with contextlib.suppress(ModelConfigError):
        parsed = parse_hf_config(config)
        assert parsed.digest
        for layer in {layer for layer in parsed.layers if layer.rope and parsed.head_dim <= 1024}:
            assert layer.rope is not None
            assert rotary_table(layer.rope, parsed.head_dim, 64).shape[0] == 64


_OPTIONAL = (
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "layer_types"),
    *("partial_rotary_factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("full_attention", "sliding_attention", "rope_parameters", "rope_type", "long_factor", "short_factor"),
)
