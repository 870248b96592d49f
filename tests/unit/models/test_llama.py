"""Teacher-forced logits against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.kernels.decoder import Decoder
from shoal.kernels.native import library
from shoal.kernels.paged_attention import AttentionPlan
from shoal.model_worker.loader import DType, load_model, open_checkpoint
from support.forward import forward_logits
from support.model import smollm2_path
from support.tiny_models import VARIANTS, reference_logits, save_tiny


def random_ids(count: int, vocab_size: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_matches_transformers(variant: str, tmp_path: Path) -> None:
    reference = save_tiny(tmp_path, variant)
    loaded = load_model(tmp_path, dtype="float32")
    token_ids = random_ids(150, loaded.config.vocab_size)
    expected = reference_logits(reference, token_ids)
    assert expected.std() > 0.3
    torch.testing.assert_close(forward_logits(loaded, token_ids), expected, atol=1e-3, rtol=0)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    reference = save_tiny(tmp_path)
    loaded = load_model(tmp_path, dtype="bfloat16")
    token_ids = random_ids(150, loaded.config.vocab_size)
    expected = reference_logits(reference, token_ids)
    error = (forward_logits(loaded, token_ids) - expected).abs()
    # 3 layers of 8-bit mantissas: some 2**-8 of the spread of the logits per rounding, about 10 roundings deep.
    assert error.mean() < 2**-8 * 10 * expected.std()


def test_smollm2_matches_transformers() -> None:
    """Independent of our model code and rotary table; q and k rows are put back in order by the loader under test,
    and would give other logits in any other order."""
    from transformers import LlamaConfig, LlamaForCausalLM

    loaded = load_model(smollm2_path(), dtype="float32")
    checkpoint, config = open_checkpoint(smollm2_path()), loaded.config
    rope = config.layers[0].rope
    assert rope is not None
    with torch.device("meta"):
        reference = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                max_position_embeddings=config.max_position_embeddings,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": rope.theta},
                tie_word_embeddings=True,
            )
        )
    rotary = type(reference.model.rotary_emb)(reference.config)
    reference.load_state_dict({name: checkpoint.read(name) for name in checkpoint.shapes}, strict=False, assign=True)
    reference.tie_weights()
    reference.model.rotary_emb = rotary
    token_ids = random_ids(200, config.vocab_size)
    expected = reference_logits(reference.eval(), token_ids)
    actual = forward_logits(loaded, token_ids)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)
    assert torch.equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["llama", "biases", "mistral"])
@pytest.mark.parametrize("num_tokens", [1, 50])
def test_one_native_call_equals_layer_by_layer(
    num_tokens: int, variant: str, dtype: DType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short inputs take the native call for the whole decoder: the same bits as from the operations one by one."""
    if library() is None:
        pytest.skip("no C compiler here")
    save_tiny(tmp_path, variant)
    loaded = load_model(tmp_path, dtype=dtype)
    token_ids = random_ids(num_tokens, loaded.config.vocab_size)
    taken: list[bool] = []
    accepts = Decoder.accepts

    def record(decoder: Decoder, plan: AttentionPlan, num_tokens: int) -> bool:
        taken.append(accepts(decoder, plan, num_tokens))
        return taken[-1]

    monkeypatch.setattr(Decoder, "accepts", record)
    at_once = forward_logits(loaded, token_ids)
    assert taken == [True]
    monkeypatch.setattr(Decoder, "accepts", lambda *arguments: False)
    assert torch.equal(forward_logits(loaded, token_ids), at_once)


@pytest.mark.parametrize("num_tokens", [50, 150], ids=["one-call", "layer-by-layer"])
@pytest.mark.parametrize("rows", [[], [0], [3, 17, 49]])
def test_outputs_can_be_limited_to_rows(rows: list[int], num_tokens: int, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    loaded = load_model(tmp_path, dtype="float32")
    token_ids, output_rows = random_ids(num_tokens, loaded.config.vocab_size), torch.tensor(rows, dtype=torch.int64)
    logits = forward_logits(loaded, token_ids, output_rows)
    torch.testing.assert_close(logits, forward_logits(loaded, token_ids)[output_rows], atol=1e-4, rtol=0)
