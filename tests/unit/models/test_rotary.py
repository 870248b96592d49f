"""Tables of angles against transformers' own frequencies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoal.model_worker.layers.rotary import RotaryTables, rotary_table
from shoal.model_worker.models.config import ModelConfigError, RopeConfig
from shoal.model_worker.models.hf_config import parse_hf_config

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 2048,
    "head_dim": 64,
}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "long_factor": [1.0 + i for i in range(32)],
    "short_factor": [1.0 + i / 8 for i in range(32)],
    "original_max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@pytest.mark.parametrize("theta", [10000.0, 1e6])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
        {"rope_type": "dynamic", "factor": 4.0},
        LLAMA3,
        YARN,
        {**YARN, "truncate": False},
        {**YARN, "beta_fast": 16, "beta_slow": 2},
        {**YARN, "attention_factor": 0.5},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2},
        {**YARN, "mscale": 0.7},
        {**YARN, "partial_rotary_factor": 0.5},
        LONGROPE,
        {**LONGROPE, "factor": 4.0},
        {**LONGROPE, "attention_factor": 1.25},
    ],
    ids=lambda scaling: ",".join(f"{k}={v}" for k, v in scaling.items() if not isinstance(v, list)),
)
@pytest.mark.parametrize("max_position", [2048, 5000])
def test_angles_are_those_of_transformers(scaling: dict[str, Any], theta: float, max_position: int) -> None:
    """2,048 is the longest context by configuration; dynamic scaling acts beyond it."""
    parameters = {**scaling, "rope_theta": theta}
    config = LlamaConfig(**SIZES, rope_parameters=dict(parameters))
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, seq_len=max_position)
    parsed = parse_hf_config({**SIZES, "architectures": ["LlamaForCausalLM"], "rope_parameters": parameters})
    rope = parsed.layers[0].rope
    assert rope is not None
    table = rotary_table(rope, SIZES["head_dim"], max_position)
    assert table.shape == (max_position, 2 * len(frequencies))
    for position in (1, 7, 100):
        angles = frequencies.double() * position
        expected = torch.cat((angles.cos(), angles.sin())) * factor
        # transformers computes frequencies in float32: 2**-24 of an angle up to 100.
        torch.testing.assert_close(table[position], expected.float(), atol=5e-5, rtol=0)


def test_longrope_of_a_context_as_long_as_the_original_one() -> None:
    parsed = parse_hf_config({**SIZES, "architectures": ["LlamaForCausalLM"], "rope_parameters": LONGROPE})
    rope = parsed.layers[0].rope
    assert rope is not None
    short = rotary_table(rope, 64, 128)
    assert torch.equal(rotary_table(rope.limited_to(128), 64, 2048)[:128], short)
    assert not torch.equal(rotary_table(rope, 64, 129)[:128], short)
    assert rope.limited_to(129) == rope
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(16) / math.log(128)))


def test_layers_without_rotation_are_turned_by_nothing() -> None:
    tables = RotaryTables(64, 10, torch.device("cpu"))
    assert tables[None].shape[0] == 10
    cosines, sines = tables[None].chunk(2, dim=1)
    assert (cosines == 1).all()
    assert (sines == 0).all()
    assert tables[RopeConfig()] is tables[RopeConfig()]


def test_frequency_factors_must_fit() -> None:
    table = rotary_table(RopeConfig(kind="factors", frequency_factors=(1.0, 2.0)), 4, 3)
    assert table.shape == (3, 4)
    with pytest.raises(ModelConfigError, match=r"2 frequency factors; need 8"):
        rotary_table(RopeConfig(kind="factors", frequency_factors=(1.0, 2.0)), 16, 3)
    with pytest.raises(ModelConfigError, match=r"rope kind 'spiral' is not supported; use one of default"):
        RopeConfig(kind="spiral")
