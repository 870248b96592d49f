import numpy as np
import pytest
import torch

from shoal.model_worker.sampling import filters
from shoal.model_worker.sampling.filters import filter_weights
from shoal.model_worker.sampling.params import SampledSequence, SamplingParams
from shoal.model_worker.sampling.slots import SamplingSlots
from support.sampling_reference import probabilities

COMBINATIONS = [
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=1.0),
    SamplingParams(top_k=2),
    SamplingParams(top_k=7),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.999),
    SamplingParams(top_p=1e-6),
    SamplingParams(typical_p=0.3),
    SamplingParams(typical_p=0.95),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.8),
    SamplingParams(temperature=1.5, min_p=0.02, top_k=30, top_p=0.9, typical_p=0.9),
    SamplingParams(temperature=0.01, top_p=0.9, typical_p=0.5),
]


def filtered(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """The weights that the sampler draws from, for row i under params[i]."""
    state = SamplingSlots(len(params), logits.shape[-1])
    for slot, each in enumerate(params):
        state.admit(slot, SampledSequence(each, 0, 0, [0], 1, []))
    scaled = (logits - logits.amax(-1, keepdim=True)) / torch.from_numpy(state.temperature)[:, None]
    return filter_weights(scaled, np.arange(len(params), dtype=np.int32), state)


@pytest.mark.parametrize("params", COMBINATIONS, ids=str)
@pytest.mark.parametrize(("vocab_size", "spread"), [(5, 3.0), (97, 2.0), (1500, 0.5)])
def test_filters_match_their_definition(params: SamplingParams, vocab_size: int, spread: float) -> None:
    logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * spread
    weights = filtered(logits.clone(), [params] * 4).double()
    for row, weight in zip(logits.tolist(), weights, strict=True):
        expected = probabilities(row, params)
        assert (weight > 0).tolist() == [prob > 0 for prob in expected]
        np.testing.assert_allclose((weight / weight.sum()).numpy(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(top_k=2), [0, 1, 2]),
        (SamplingParams(top_p=0.5), [0, 1, 2]),
        (SamplingParams(min_p=0.9), [0]),
        (SamplingParams(top_k=4), [0, 1, 2, 3, 4]),
    ],
)
def test_tokens_tied_with_the_last_one_kept_are_kept(params: SamplingParams, kept: list[int]) -> None:
    weights = filtered(torch.tensor([[3.0, 2.5, 2.5, 1.0, 1.0]]), [params])
    assert weights[0].nonzero().flatten().tolist() == kept


def test_forbidden_tokens_stay_forbidden() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.5, -torch.inf]] * len(COMBINATIONS))
    weights = filtered(logits, COMBINATIONS)
    assert torch.isfinite(weights).all()
    assert not weights[:, [1, 3]].any()
    assert (weights.sum(-1) > 0).all()


@pytest.mark.parametrize("vocab_size", [97, 4099, 49152])
def test_a_row_is_filtered_alike_alone_and_in_a_batch(vocab_size: int) -> None:
    params = COMBINATIONS * 2
    logits = torch.randn(len(params), vocab_size, generator=torch.Generator().manual_seed(1)) * 2
    together = filtered(logits.clone(), params)
    for row, each in enumerate(params):
        assert torch.equal(filtered(logits[row : row + 1].clone(), [each])[0], together[row])


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-9])
@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
def test_top_p_finds_what_a_full_sort_finds(mass: float, spread: float) -> None:
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(3)) * spread
    weights = torch.softmax(logits, -1)
    ranked = weights[0].double().sort(descending=True).values
    target = mass * float(ranked.sum())
    expected = ranked[min(int((ranked.cumsum(0) < target).sum()), 4999)]
    total = weights.double().sum(-1)
    on_cpu = filters._lowest_weights_kept(weights.numpy(), np.array([mass]), total.numpy())
    elsewhere = filters._lowest_kept(weights, weights, mass * total)
    assert on_cpu[0] == elsewhere[0] == expected.float()
