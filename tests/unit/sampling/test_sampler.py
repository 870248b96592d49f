from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shoal.model_worker.sampling.params import SampledSequence, SamplingParams
from shoal.model_worker.sampling.random import uniforms
from shoal.model_worker.sampling.sampler import Sampler
from support.sampling_reference import edited_logits, inverse_cdf, probabilities

VOCAB = 50
PROMPT = (3, 1, 4, 1, 5)

MIXED = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, logprobs=3),
    SamplingParams(),
    SamplingParams(temperature=0.6, logprobs=0),
    SamplingParams(top_k=1),
    SamplingParams(temperature=1.3, top_k=8, logprobs=20),
    SamplingParams(top_p=0.7, frequency_penalty=1.0, presence_penalty=0.5),
    SamplingParams(min_p=0.05, logit_bias={7: 4.0}),
    SamplingParams(typical_p=0.6, min_tokens=30),
    SamplingParams(temperature=0.8, min_p=0.01, top_k=20, top_p=0.9, typical_p=0.95, repetition_penalty=1.2),
]


def make_logits(rows: int, vocab_size: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


def admit(sampler: Sampler, slot: int, params: SamplingParams, *, seed: int = 0, choice: int = 0,
          output: Sequence[int] = (), stop_ids: Sequence[int] = (0,)) -> None:  # fmt: skip
    sampler.admit(slot, SampledSequence(params, seed, choice, (*PROMPT, *output), len(PROMPT), stop_ids))


def run(sampler: Sampler, slot: int, steps: Sequence[torch.Tensor]) -> list[int]:
    """The tokens of one slot sampled on its own, one row of logits a step."""
    slots = np.array([slot], dtype=np.int32)
    return [int(sampler.sample(logits[None].clone(), slots).token_ids[0]) for logits in steps]


@pytest.mark.parametrize("params", MIXED, ids=str)
def test_tokens_are_the_definitions(params: SamplingParams) -> None:
    steps = make_logits(40)
    sampler = Sampler(1, VOCAB)
    admit(sampler, 0, params, seed=77, choice=2)
    tokens = run(sampler, 0, list(steps))
    for position, (logits, token) in enumerate(zip(steps.tolist(), tokens, strict=True)):
        edited = edited_logits(logits, params, PROMPT, tokens[:position], [0])
        if params.greedy or params.top_k == 1:
            assert token == max(range(VOCAB), key=edited.__getitem__)
        else:
            number = uniforms(np.array([77], dtype=np.uint64), [position], [2])[0]
            assert token == inverse_cdf(probabilities(edited, params), float(number))


@pytest.mark.parametrize("params", [each for each in MIXED[2:] if each.top_k != 1], ids=str)
def test_draws_follow_the_exact_distribution(params: SamplingParams) -> None:
    width, first = 2000, make_logits(1, seed=9)
    sampler = Sampler(width, VOCAB)
    slots = np.arange(width, dtype=np.int32)
    counts = np.zeros(VOCAB)
    for attempt in range(10):
        for slot in range(width):
            admit(sampler, slot, params, seed=attempt * width + slot)
        tokens = sampler.sample(first.repeat(width, 1), slots).token_ids
        counts += np.bincount(tokens, minlength=VOCAB)
        for slot in range(width):
            sampler.release(slot)
    expected = np.array(probabilities(edited_logits(first[0].tolist(), params, PROMPT, [], [0]), params)) * counts.sum()
    assert not counts[expected == 0].any()
    common = expected >= 5
    observed = [*counts[common], counts[~common].sum()]
    predicted = [*expected[common], expected[~common].sum()]
    if predicted[-1] == 0:
        observed, predicted = observed[:-1], predicted[:-1]
    assert len(predicted) > 1
    assert stats.chisquare(observed, predicted).pvalue > 1e-4


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(len(MIXED))), size=st.integers(1, len(MIXED)), data=st.data())
def test_a_sequence_is_the_same_in_any_batch(order: list[int], size: int, data: st.DataObject) -> None:
    vocab_size = data.draw(st.sampled_from([VOCAB, 131, 4099]))
    steps = [make_logits(len(MIXED), vocab_size, seed=step) for step in range(3)]
    together, alone = Sampler(16, vocab_size), Sampler(16, vocab_size)
    slots = np.array(order[:size], dtype=np.int32)
    for slot in slots.tolist():
        for sampler in (together, alone):
            admit(sampler, slot, MIXED[slot], seed=slot)
    for logits in steps:
        batch = together.sample(logits[torch.from_numpy(slots).long()], slots)
        for row, slot in enumerate(slots.tolist()):
            single = alone.sample(logits[slot : slot + 1].clone(), slots[row : row + 1])
            assert single.token_ids[0] == batch.token_ids[row]
            assert single.logprobs.get(slot) == batch.logprobs.get(slot)


@pytest.mark.parametrize("params", MIXED, ids=str)
def test_a_resumed_sequence_goes_on_as_if_nothing_had_happened(params: SamplingParams) -> None:
    steps = list(make_logits(40))
    sampler = Sampler(2, VOCAB)
    admit(sampler, 0, params, seed=5)
    whole = run(sampler, 0, steps)
    for cut in (1, 17, 39):
        admit(sampler, 1, params, seed=5, output=whole[:cut])
        assert run(sampler, 1, steps[cut:]) == whole[cut:]
        sampler.release(1)


def test_seeds_and_choices_are_different_streams() -> None:
    steps = list(make_logits(1).expand(60, -1))
    streams = []
    for seed, choice in ((1, 0), (2, 0), (1, 1), (2**64 - 1, 0)):
        sampler = Sampler(1, VOCAB)
        admit(sampler, 0, SamplingParams(), seed=seed, choice=choice)
        streams.append(tuple(run(sampler, 0, steps)))
    assert len(set(streams)) == 4


def test_a_fork_goes_on_as_its_own_choice() -> None:
    params = SamplingParams(temperature=1.2, frequency_penalty=0.7, repetition_penalty=1.3, min_tokens=50)
    steps = list(make_logits(1).expand(40, -1))
    sampler = Sampler(3, VOCAB)
    admit(sampler, 0, params, seed=5)
    sampler.fork(0, 2, choice=3)
    first = run(sampler, 0, steps)
    forked = run(sampler, 2, steps)
    assert first != forked
    admit(sampler, 1, params, seed=5, choice=3)
    assert run(sampler, 1, steps) == forked
    sampler.release(0)
    admit(sampler, 0, params, seed=5, choice=0)
    assert run(sampler, 0, steps) == first


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_wait_for_min_tokens(temperature: float) -> None:
    logits = torch.zeros(VOCAB)
    logits[[7, 9]] = 60.0
    sampler = Sampler(1, VOCAB)
    params = SamplingParams(temperature=temperature, min_tokens=5)
    admit(sampler, 0, params, output=(2, 2), stop_ids=(7, 9, VOCAB + 3))
    tokens = run(sampler, 0, [logits] * 5)
    assert not {7, 9} & set(tokens[:3])
    assert set(tokens[3:]) <= {7, 9}


def test_the_smallest_temperature_is_greedy() -> None:
    steps = list(make_logits(20))
    sampler = Sampler(1, VOCAB)
    admit(sampler, 0, SamplingParams(temperature=1e-44))
    assert run(sampler, 0, steps) == [int(logits.argmax()) for logits in steps]


def test_greedy_takes_the_first_of_equal_tokens() -> None:
    logits = torch.zeros(VOCAB)
    logits[[11, 30]] = 1.0
    sampler = Sampler(1, VOCAB)
    admit(sampler, 0, SamplingParams(temperature=0.0))
    assert run(sampler, 0, [logits]) == [11]


def test_logprobs_are_the_models_own() -> None:
    params = SamplingParams(temperature=0.3, top_k=2, logit_bias={8: 100.0}, logprobs=4)
    logits = make_logits(2)
    sampler = Sampler(4, VOCAB)
    admit(sampler, 3, params)
    admit(sampler, 1, SamplingParams())
    output = sampler.sample(logits.clone(), np.array([1, 3], dtype=np.int32))
    assert set(output.logprobs) == {3}
    entry = output.logprobs[3]
    expected = torch.log_softmax(logits[1], -1)
    assert entry.token_id == output.token_ids[1] == 8
    assert entry.logprob == pytest.approx(float(expected[8]), abs=1e-5)
    assert [token for token, _ in entry.top] == expected.argsort(descending=True)[:4].tolist()


def test_a_row_of_nan_spares_the_others() -> None:
    params = [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=3, top_p=0.9, typical_p=0.9)]
    clean = Sampler(6, VOCAB)
    broken = Sampler(6, VOCAB)
    slots = np.arange(6, dtype=np.int32)
    for slot in range(6):
        admit(clean, slot, params[slot % 3], seed=slot)
        admit(broken, slot, params[slot % 3], seed=slot)
    logits = make_logits(6)
    expected = clean.sample(logits.clone(), slots).token_ids
    logits[:3] = torch.nan
    got = broken.sample(logits, slots).token_ids
    assert got[3:].tolist() == expected[3:].tolist()
    assert all(0 <= token < VOCAB for token in got)


def test_misuse_is_refused() -> None:
    sampler = Sampler(3, VOCAB)
    admit(sampler, 0, SamplingParams())
    with pytest.raises(ValueError, match="slot 0 is occupied"):
        admit(sampler, 0, SamplingParams())
    with pytest.raises(ValueError, match="slot 1 is free"):
        sampler.release(1)
    with pytest.raises(ValueError, match="cannot fork slot 1 to 2"):
        sampler.fork(1, 2, choice=1)
    with pytest.raises(ValueError, match=r"need \(1, 50\)"):
        sampler.sample(torch.zeros(2, VOCAB), np.array([0], dtype=np.int32))
