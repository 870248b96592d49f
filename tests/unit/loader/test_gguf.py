from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model_worker.loader import ModelLoadError, load_model, open_checkpoint
from support.forward import forward_logits
from support.tiny_models import TINY, build_reference, reference_logits

IDS = torch.arange(40)
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, kind = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.{kind}"


def permute(weight: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """What llama.cpp's converter does to q and k: halves become neighbours."""
    shaped = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(shaped.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(
    path: Path,
    model: Any,
    kind: gguf.GGMLQuantizationType,
    *,
    rope_factors: torch.Tensor | None = None,
    **metadata: Any,
) -> None:
    """Writes a transformers Llama as llama.cpp would. Rows that the kind cannot hold stay float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(TINY["max_position_embeddings"])
    writer.add_embedding_length(model.config.hidden_size)
    writer.add_feed_forward_length(model.config.intermediate_size)
    writer.add_block_count(model.config.num_hidden_layers)
    writer.add_head_count(model.config.num_attention_heads)
    writer.add_head_count_kv(model.config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_eos_token_id(2)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(199)])
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_array
        add(key.replace("__", "."), value)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        for part, heads in (("q", model.config.num_attention_heads), ("k", model.config.num_key_value_heads)):
            values = permute(values, heads) if f"self_attn.{part}_proj" in name else values
        quantise = values.ndim == 2 and values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        used = kind if quantise else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, build_reference("llama"), gguf.GGMLQuantizationType.Q8_0)
    return path.read_bytes()


@pytest.mark.parametrize("variant", ["llama", "biases", "tied"])
def test_float32_file_matches_transformers(variant: str, tmp_path: Path) -> None:
    reference = build_reference(variant)
    write_gguf(tmp_path / "model.gguf", reference, gguf.GGMLQuantizationType.F32)
    loaded = load_model(tmp_path, dtype="float32")
    assert loaded.config.eos_token_ids == (2,)
    torch.testing.assert_close(forward_logits(loaded, IDS), reference_logits(reference, IDS), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_kind_is_dequantised(kind: str, tmp_path: Path) -> None:
    model = build_reference("llama")
    write_gguf(tmp_path / "model.gguf", model, gguf.GGMLQuantizationType[kind])
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in model.state_dict().items():
        actual = checkpoint.read(name).float()
        # The step between neighbouring values: 2**-8 relative, or a block's range in 16 levels or more.
        step = tensor.abs().max() * (2**-7 if kind in ("F16", "BF16", "Q8_0") else 2 / 15)
        assert (actual - tensor).abs().max() <= step, name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_decode_as_the_package_does(kind: str, tmp_path: Path) -> None:
    from shoal.model_worker.loader.gguf_checkpoint import GgufCheckpoint

    quantisation = gguf.GGMLQuantizationType[kind]
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    raw = np.random.default_rng(0).integers(0, 60, (64, 2 * block_bytes), dtype=np.uint8)
    path = tmp_path / "model.gguf"
    write_gguf(path, build_reference("llama"), gguf.GGMLQuantizationType.F32)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama.") and len(field.types) == 1:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_tensor("token_embd.weight", raw, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    actual = GgufCheckpoint(tmp_path / "k.gguf").read("model.embed_tokens.weight")
    assert actual.shape == (64, 2 * per_block)
    np.testing.assert_array_equal(actual.numpy(), gguf.quants.dequantize(raw, quantisation))


def test_rope_factors_become_part_of_the_configuration(tmp_path: Path) -> None:
    model = build_reference("llama3 rope")
    plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = (plain / model.model.rotary_emb.inv_freq).float()
    write_gguf(tmp_path / "model.gguf", model, gguf.GGMLQuantizationType.F32, rope_factors=factors)
    loaded = load_model(tmp_path, dtype="float32")
    assert {layer.rope.kind for layer in loaded.config.layers if layer.rope} == {"factors"}
    token_ids = torch.arange(100)
    torch.testing.assert_close(forward_logits(loaded, token_ids), reference_logits(model, token_ids), atol=1e-3, rtol=0)


def refuse(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        load_model(path)


def test_truncated_file_names_tensor_and_offsets(valid: bytes, tmp_path: Path) -> None:
    size = len(valid) - 100
    refuse(tmp_path / "m.gguf", valid[:size], rf"truncated: tensor \S+ takes bytes \d+ to \d+, the file ends at {size}")


def test_wrong_magic_version_and_counts(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    refuse(path, b"", "cannot be mapped")
    refuse(path, b"PK\x03\x04" + bytes(60), "is not a GGUF file: it begins with b'PK")
    refuse(path, valid[:4] + struct.pack("<I", 9) + valid[8:], "has GGUF version 9")
    refuse(path, valid[:8] + struct.pack("<Q", 2**60) + valid[16:], "more than the file can hold .at byte 24")
    refuse(path, valid[:2000], "truncated")


def test_unsupported_family_and_scaling(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=r"general.architecture 'mamba' is not supported; known: llama"):
        load_model(path)
    write_gguf(path, build_reference("llama"), gguf.GGMLQuantizationType.F32, llama__rope__scaling__type="spiral")
    with pytest.raises(ModelLoadError, match=r"rope.scaling.type 'spiral' is not supported; use none, linear, yarn"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.bos_token_id", [1], r"tokenizer.ggml.bos_token_id must be an integer, not SkippedArray"),
        ("tokenizer.ggml.eot_token_id", "two", r"tokenizer.ggml.eot_token_id must be an integer, not 'two'"),
        ("llama.rope.scaling.factor", [2], r"rope.scaling.factor must be a positive number, not SkippedArray"),
        ("llama.attention.sliding_window", [8, 9], r"sliding_window must be a positive number, not SkippedArray"),
    ],
)
def test_metadata_of_another_type_is_named(key: str, value: Any, message: str, tmp_path: Path) -> None:
    extra = {key: value, "llama.rope.scaling.type": "linear"}
    write_gguf(tmp_path / "m.gguf", build_reference("llama"), gguf.GGMLQuantizationType.F32, **extra)
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_headers_never_escape_as_other_errors(valid: bytes, data: st.DataObject) -> None:
    """Any byte of the header changed, or the file cut anywhere: it opens, or ModelLoadError says why not."""
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "m.gguf"
        path.write_bytes(bytes(damaged[:cut]))
        with contextlib.suppress(ModelLoadError):
            open_checkpoint(path)


def test_config_json_beside_is_not_needed(valid: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(valid)
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert load_model(tmp_path).config.architecture == "LlamaForCausalLM"
    (tmp_path / "second.gguf").write_bytes(valid)
    with pytest.raises(ModelLoadError, match=r"2 .gguf files; name the file"):
        load_model(tmp_path)
