"""GGUF files of every family, written with the names and metadata that the gguf package has for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import MODEL_ARCH

from shoal.model_worker.loader import ModelLoadError, load_model, open_checkpoint
from shoal.model_worker.loader.gguf_families import FAMILIES
from support.forward import forward_logits
from support.tiny_models import YARN, build_reference, reference_logits

TOKEN_IDS = torch.arange(150)


def neighbours(weight: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Rows of q or k in the order that llama.cpp's converter gives them for Llama and SmolLM3."""
    shaped = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(shaped.swapaxes(1, 2).reshape(weight.shape))


def write(path: Path, model: Any, arch: MODEL_ARCH, add_metadata: Callable[[gguf.GGUFWriter], None]) -> None:
    """Writes a transformers model in float32 under the gguf package's names."""
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_metadata(writer)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if arch == MODEL_ARCH.SMOLLM3 and "q_proj" in name:
            values = neighbours(values, config.num_attention_heads)
        if arch == MODEL_ARCH.SMOLLM3 and "k_proj" in name:
            values = neighbours(values, config.num_key_value_heads)
        if arch == MODEL_ARCH.GEMMA3 and "norm" in name:
            values = values + 1
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(YARN["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(YARN["factor"])
    writer.add_rope_scaling_orig_ctx_len(YARN["original_max_position_embeddings"])


def add_gemma(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(1e6)
    writer.add_key_length(32)
    writer.add_sliding_window(24)


def add_scaled_gemma(writer: gguf.GGUFWriter) -> None:
    add_gemma(writer)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_final_logit_softcapping(4.0)


def add_phi(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_sliding_window(24)


def add_phi_longrope(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(12)
    writer.add_sliding_window(0)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(8) / math.log(64)))
    long, short = [1.0, 1.5, 2.0, 4.0, 6.0, 8.0], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    writer.add_tensor("rope_factors_long.weight", np.array(long, np.float32))
    writer.add_tensor("rope_factors_short.weight", np.array(short, np.float32))


CASES: dict[str, tuple[MODEL_ARCH, Callable[[gguf.GGUFWriter], None]]] = {
    "qwen2": (MODEL_ARCH.QWEN2, lambda writer: None),
    "qwen2.5, yarn": (MODEL_ARCH.QWEN2, add_yarn),
    "qwen3": (MODEL_ARCH.QWEN3, lambda writer: writer.add_key_length(32)),
    "gemma3, published pattern": (MODEL_ARCH.GEMMA3, add_gemma),
    "gemma3, published pattern, scaled rope": (MODEL_ARCH.GEMMA3, add_scaled_gemma),
    "phi3": (MODEL_ARCH.PHI3, add_phi),
    "phi4-mini, longrope": (MODEL_ARCH.PHI3, add_phi_longrope),
    "smollm3, published interval": (MODEL_ARCH.SMOLLM3, lambda writer: writer.add_rope_freq_base(2e6)),
    "olmo2": (MODEL_ARCH.OLMO2, lambda writer: None),
}


def test_every_family_has_a_case() -> None:
    assert {gguf.MODEL_ARCH_NAMES[arch] for arch, _ in CASES.values()} == set(FAMILIES) - {"llama"}


@pytest.mark.parametrize("variant", CASES)
def test_matches_transformers(variant: str, tmp_path: Path) -> None:
    reference = build_reference(variant)
    write(tmp_path / "model.gguf", reference, *CASES[variant])
    loaded = load_model(tmp_path, dtype="float32")
    expected = reference_logits(reference, TOKEN_IDS)
    tolerance = 1e-4 * float(expected.std())
    torch.testing.assert_close(forward_logits(loaded, TOKEN_IDS), expected, atol=tolerance, rtol=1e-4)


def test_a_window_for_unknown_layers_is_refused(tmp_path: Path) -> None:
    """OLMo 3 files call themselves olmo2."""
    write(
        tmp_path / "model.gguf",
        build_reference("olmo2"),
        MODEL_ARCH.OLMO2,
        lambda writer: writer.add_sliding_window(24),
    )
    with pytest.raises(ModelLoadError, match=r"olmo2.attention.sliding_window is not supported for this family"):
        open_checkpoint(tmp_path)
