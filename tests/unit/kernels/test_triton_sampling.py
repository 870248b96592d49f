"""The GPU's sampling kernels against their definition: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from shoal.kernels.sampling import SLOT_DTYPE, reference
from shoal.model_worker.sampling.device import DeviceSampler
from shoal.model_worker.sampling.params import SampledSequence, SamplingParams
from shoal.model_worker.sampling.random import uniforms
from support.device_sampling import EACH_ALONE, FILTERS_AND_EDITS, admit_all, is_right, make_logits, make_sampler

impl = pytest.importorskip("shoal.kernels.sampling.triton_impl", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(num_slots: int, vocab_size: int, chunk: int) -> DeviceSampler:
    return make_sampler(num_slots, vocab_size, chunk=chunk, sample=impl.sample, device=DEVICE)


def run(sampler: DeviceSampler, logits: torch.Tensor, slots: Sequence[int] | None = None) -> list[int]:
    at = range(len(logits)) if slots is None else slots
    on_device = torch.tensor(list(at), dtype=torch.int32, device=DEVICE)
    return [int(token) for token in sampler.sample(logits.to(DEVICE), on_device)]


def check(kinds: Sequence[SamplingParams], vocab_size: int, chunk: int, spread: float, steps: int) -> None:
    """Tokens are the definition's, but for at most one in 50 that rounding has moved to its neighbour."""
    kernel, definition = make(len(kinds), vocab_size, chunk), make_sampler(len(kinds), vocab_size)
    admit_all((kernel, definition), kinds)
    slots = torch.arange(len(kinds), dtype=torch.int32)
    others = 0
    for step in range(steps):
        logits = make_logits(len(kinds), vocab_size, seed=step, spread=spread)
        before = logits.clone()
        tokens = run(kernel, logits)
        assert torch.equal(logits, before)
        for slot, token in enumerate(tokens):
            assert is_right(logits[slot], slot, definition.state, token), (slot, kinds[slot])
        expected = definition.sample(logits, slots).tolist()
        others += sum(token != other for token, other in zip(tokens, expected, strict=True))
        for name in ("slots", "counts"):
            getattr(definition.state, name).copy_(getattr(kernel.state, name))
    assert others <= len(kinds) * steps / 50


@pytest.mark.parametrize(("vocab_size", "chunk", "spread"), [(50, 64, 2.0), (301, 128, 0.7)])
def test_each_parameter_alone(vocab_size: int, chunk: int, spread: float) -> None:
    check(EACH_ALONE, vocab_size, chunk, spread, steps=3)


@pytest.mark.parametrize(("vocab_size", "chunk", "spread"), [(50, 32, 3.0), (256, 64, 0.5)])
def test_parameters_together(vocab_size: int, chunk: int, spread: float) -> None:
    check(FILTERS_AND_EDITS, vocab_size, chunk, spread, steps=4)


def test_filters_of_distributions_from_flat_to_peaked() -> None:
    kinds = [SamplingParams(top_p=0.9), SamplingParams(top_k=70), SamplingParams(typical_p=0.8)]
    for spread in (0.0, 0.01, 50.0):
        check(kinds, 180, 64, spread, steps=1)


def test_a_row_is_sampled_alike_alone_and_in_a_batch() -> None:
    kinds = FILTERS_AND_EDITS[:4] + EACH_ALONE[:3]
    together, alone = make(len(kinds), 150, 64), make(len(kinds), 150, 64)
    admit_all((together, alone), kinds)
    logits = make_logits(len(kinds), 150)
    order = [5, 0, 3, 6, 1, 4, 2]
    tokens = run(together, logits[order], order)
    assert tokens == [run(alone, logits[slot : slot + 1], [slot])[0] for slot in order]


def test_unused_places_are_skipped_and_nothing_of_other_slots_is_touched() -> None:
    sampler = make(4, 60, 64)
    admit_all((sampler,), [SamplingParams(temperature=0.0, presence_penalty=0.1)] * 4)
    before = sampler.state.slots.clone(), sampler.state.counts.clone()
    logits = make_logits(3, 60)
    logits[1] = torch.nan
    tokens = run(sampler, logits, [2, -1, 0])
    assert tokens[1] == 0
    for slot in (1, 3):
        assert torch.equal(sampler.state.slots[slot], before[0][slot])
        assert torch.equal(sampler.state.counts[slot], before[1][slot])
    scalars = sampler.state.slots.cpu().numpy().view(SLOT_DTYPE)[:, 0]
    assert scalars["num_outputs"].tolist() == [1, 0, 1, 0]


def test_the_first_of_equal_logits_is_taken_and_ties_at_a_threshold_are_kept() -> None:
    kinds = [SamplingParams(temperature=0.0), *([SamplingParams(top_k=2)] * 12)]
    sampler = make(len(kinds), 100, 64)
    admit_all((sampler,), kinds)
    logits = torch.full((len(kinds), 100), -3.0)
    logits[:, [20, 70, 99]] = torch.tensor([1.5, 1.5, 1.5])
    greedy, *drawn = run(sampler, logits)
    assert greedy == 20
    assert set(drawn) == {20, 70, 99}


def test_rows_of_nan_and_of_infinities_give_tokens_of_the_vocabulary() -> None:
    kinds = [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_p=0.5, top_k=5, typical_p=0.9)]
    sampler = make(3, 70, 32)
    admit_all((sampler,), kinds)
    for row in (torch.full((70,), torch.nan), torch.full((70,), -torch.inf)):
        assert run(sampler, row.repeat(3, 1)) == [0, 0, 0]
    only = torch.full((70,), -torch.inf)
    only[50] = -1e30
    assert run(sampler, only.repeat(3, 1)) == [50, 50, 50]
    only[[3, 60]] = torch.tensor([torch.nan, torch.inf])
    assert run(sampler, only.repeat(3, 1)) == [60, 60, 60]


def test_forbidden_tokens_are_never_drawn() -> None:
    kinds = [SamplingParams(temperature=2.0), SamplingParams(temperature=2.0, top_p=0.999)] * 8
    sampler = make(len(kinds), 40, 16)
    admit_all((sampler,), kinds)
    logits = make_logits(len(kinds), 40)
    logits[:, ::2] = -torch.inf
    assert all(token % 2 for token in run(sampler, logits))


def test_numbers_are_the_torch_samplers_bit_for_bit() -> None:
    """Two tokens of equal weight: which is drawn is the number's first bit; of 2**k the first k bits."""
    seeds = np.array([0, 1, 2**63 + 12345, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
    kinds, size = [SamplingParams()] * len(seeds), 256
    sampler = make(len(kinds), size, 128)
    for slot, seed in enumerate(seeds.tolist()):
        sampler.admit(slot, SampledSequence(kinds[slot], seed, slot * 7, (1, 2, 3), 1, ()))
    sampler.flush()
    for position in range(2, 5):
        numbers = uniforms(seeds, np.full(len(seeds), position), np.arange(len(seeds)) * 7)
        exact = [reference.uniform(int(seed), position, slot * 7) for slot, seed in enumerate(seeds)]
        assert numbers.tolist() == exact
        assert run(sampler, torch.zeros(len(seeds), size)) == (numbers * size).astype(int).tolist()


@pytest.mark.parametrize(("params", "rows"), [(SamplingParams(temperature=0.8), 300), (SamplingParams(top_p=0.8), 100)])
def test_draws_follow_the_distribution(params: SamplingParams, rows: int) -> None:
    sampler, size = make(rows, 8, 4 if params.top_p == 1 else 8), 8
    admit_all((sampler,), [params] * rows, first_seed=1000)
    logits = torch.tensor([1.0, 0.2, -0.5, 0.9, 0.0, -3.0, 0.4, 0.6])
    counts = np.bincount(run(sampler, logits.repeat(rows, 1)), minlength=size)
    scalars = sampler.state.slots[0].cpu().numpy().view(SLOT_DTYPE)[0]
    scaled = (logits - logits.max()).double().numpy() / params.temperature
    weights = reference.filtered_weights(scaled, scalars)
    assert not counts[weights == 0].any()
    kept = weights > 0
    assert stats.chisquare(counts[kept], weights[kept] / weights.sum() * rows).pvalue > 1e-3
