"""Every family against transformers' own class: random weights, saved there, loaded here."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.model_worker.loader import LoadedModel, load_model
from shoal.model_worker.runner.cpu import CpuRunner
from shoal.model_worker.sampling.sampler import Sampler
from support.forward import PagedForward, forward_logits
from support.runner_driving import RunnerDriver
from support.tiny_models import FAMILIES, TINY, reference_logits, reload_reference, save_tiny

NUM_TOKENS = 150
"""Past every window (24) and every original context (64)."""


@dataclass(frozen=True)
class Case:
    """One family's checkpoint, and what transformers computes with it."""

    directory: Path
    reference: Any
    loaded: LoadedModel
    token_ids: Tensor
    expected: Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = tmp_path_factory.mktemp("family")
    reference = save_tiny(directory, request.param)
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(0, TINY["vocab_size"], (NUM_TOKENS,), generator=generator)
    loaded = load_model(directory, dtype="float32")
    return Case(directory, reference, loaded, token_ids, reference_logits(reference, token_ids))


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the logits' spread, which leaves rounding of float32 and nothing else."""
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.std()), rtol=1e-4)


def test_whole_prompt(case: Case) -> None:
    assert case.expected.std() > 0.3
    assert_equal(forward_logits(case.loaded, case.token_ids), case.expected)


def test_chunks_then_single_tokens(case: Case) -> None:
    forward = PagedForward(case.loaded, 1, NUM_TOKENS)
    ends = [0, 70, 71, 128, *range(129, NUM_TOKENS + 1)]
    parts = [forward.step({0: case.token_ids[a:b]}) for a, b in itertools.pairwise(ends)]
    assert_equal(torch.cat(parts), case.expected)


def test_sequences_of_different_lengths_in_one_step(case: Case) -> None:
    """One decodes, one goes on with its prompt, one starts; all are parts of the same tokens."""
    forward = PagedForward(case.loaded, 3, NUM_TOKENS)
    forward.step({0: case.token_ids[:149], 1: case.token_ids[:100]})
    actual = forward.step({1: case.token_ids[100:131], 2: case.token_ids[:80], 0: case.token_ids[149:]})
    # Scaling that depends on the length is chosen once for all sequences: compare with a context as long.
    assert_equal(actual, torch.cat((case.expected[100:131], case.expected[:80], case.expected[149:])))


def test_bfloat16_is_as_near_as_that_of_transformers(case: Case) -> None:
    loaded = load_model(case.directory, dtype="bfloat16")
    error = (forward_logits(loaded, case.token_ids) - case.expected).abs().mean()
    reference = reload_reference(case.directory, torch.bfloat16)
    theirs = (reference_logits(reference, case.token_ids) - case.expected).abs().mean()
    # Some 2**-8 of the spread per rounding, about 10 roundings deep; and no more than rounding elsewhere explains.
    assert error < 2**-8 * 10 * case.expected.std()
    assert error < 1.3 * theirs


def test_dummy_weights_need_only_the_configuration(case: Case) -> None:
    loaded = load_model(case.directory / "config.json", dtype="bfloat16", load_format="dummy")
    assert loaded.config == case.loaded.config
    assert forward_logits(loaded, case.token_ids).isfinite().all()


def test_greedy_continuation_is_that_of_transformers(case: Case) -> None:
    config = case.loaded.config
    runner = CpuRunner(
        case.loaded.model,
        config,
        num_blocks=8,
        block_size=16,
        max_num_seqs=1,
        max_model_len=128,
        sampler=Sampler(1, config.vocab_size),
        dtype=torch.float32,
    )
    driver = RunnerDriver(runner)
    prompt = case.token_ids[:80]
    driver.admit(0, prompt.tolist())
    case.reference.generation_config.eos_token_id = None
    mask = torch.ones(1, 80, dtype=torch.int64)
    generated = case.reference.generate(prompt[None], attention_mask=mask, max_new_tokens=32, do_sample=False)
    assert driver.generate(0, 32, chunk=33) == generated[0, 80:].tolist()


def test_longrope_of_a_short_context(tmp_path: Path) -> None:
    """Where contexts cannot pass the original one, the short factors hold, as transformers has it for such a prompt."""
    reference = save_tiny(tmp_path, "phi4-mini, longrope")
    token_ids = torch.arange(60)
    expected = reference_logits(reference, token_ids)
    limited = load_model(tmp_path, dtype="float32", max_model_len=64)
    assert_equal(forward_logits(limited, token_ids), expected)
    unlimited = load_model(tmp_path, dtype="float32", max_model_len=65)
    assert (forward_logits(unlimited, token_ids) - expected).abs().max() > 0.1 * expected.std()
    assert limited.digest != unlimited.digest
    assert unlimited.digest == load_model(tmp_path, dtype="float32").digest
