import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model_worker.sampling.draw import block_masses, draw
from support.sampling_reference import inverse_cdf

LARGEST_UNIFORM = 1 - 2.0**-53
uniform_numbers = st.one_of(
    st.just(0.0), st.just(LARGEST_UNIFORM), st.integers(0, 2**53 - 1).map(lambda n: n * 2.0**-53)
)


def draw_one(weights: list[float], uniform: float) -> int:
    return int(draw(torch.tensor([weights], dtype=torch.float32), torch.tensor([uniform], dtype=torch.float64))[0])


@settings(max_examples=300, deadline=None)
@given(weights=st.lists(st.integers(0, 1000), min_size=1, max_size=300).filter(any), uniform=uniform_numbers)
def test_inverts_the_cumulative_distribution(weights: list[int], uniform: float) -> None:
    token = draw_one([float(weight) for weight in weights], uniform)
    assert token == inverse_cdf([float(weight) for weight in weights], uniform)


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(2.0**-120, 1, width=32)), min_size=1, max_size=400).filter(any),
    uniform=uniform_numbers,
)
def test_never_draws_a_token_of_weight_zero(weights: list[float], uniform: float) -> None:
    assert weights[draw_one(weights, uniform)] > 0


@pytest.mark.parametrize("vocab_size", [1, 127, 128, 129, 49152])
def test_the_ends_of_the_unit_interval_reach_the_ends_of_the_vocabulary(vocab_size: int) -> None:
    weights = [1.0] * vocab_size
    assert draw_one(weights, 0.0) == 0
    assert draw_one(weights, LARGEST_UNIFORM) == vocab_size - 1


@pytest.mark.parametrize("bad", [[np.nan] * 300, [0.0] * 300, [0.0, np.nan, 1.0], [np.inf] * 5])
def test_a_broken_row_gives_some_token_and_leaves_the_others_alone(bad: list[float]) -> None:
    good = torch.zeros(len(bad))
    good[1] = 1.0
    tokens = draw(torch.stack((torch.tensor(bad), good)), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert 0 <= int(tokens[0]) < len(bad)
    assert int(tokens[1]) == 1


@pytest.mark.parametrize("vocab_size", [97, 49152])
def test_masses_of_a_row_do_not_depend_on_the_batch(vocab_size: int) -> None:
    weights = torch.rand(33, vocab_size, generator=torch.Generator().manual_seed(0))
    together = block_masses(weights)
    assert all(torch.equal(block_masses(weights[row : row + 1])[0], together[row]) for row in range(33))
