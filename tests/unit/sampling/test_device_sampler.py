"""The device's sampler does what the CPU's does, step after step: its definition, and its kernels interpreted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.kernels import sampling
from shoal.kernels.sampling import IN_PROMPT, MAX_STOP_IDS, SLOT_DTYPE
from shoal.model_worker.sampling.device import DeviceSampler, SampleFunction
from shoal.model_worker.sampling.params import SampledSequence, SamplingParams
from shoal.model_worker.sampling.sampler import Sampler
from support.device_sampling import EACH_ALONE, FILTERS_AND_EDITS, PROMPT, make_logits, make_sampler

VOCAB = 60


def interpreted() -> SampleFunction:
    module = pytest.importorskip("shoal.kernels.sampling.triton_impl", reason="needs triton")
    if torch.cuda.is_available():
        pytest.skip("tests/gpu has the compiled kernels")
    return module.sample  # type: ignore[no-any-return]


def admit(samplers: tuple[Sampler | DeviceSampler, ...], slot: int, params: SamplingParams, *, seed: int = 5,
          output: tuple[int, ...] = (), stop_ids: tuple[int, ...] = (0, 8)) -> None:  # fmt: skip
    for sampler in samplers:
        sampler.admit(slot, SampledSequence(params, seed, 0, (*PROMPT, *output), len(PROMPT), stop_ids))


def step(sampler: Sampler | DeviceSampler, logits: torch.Tensor, slots: list[int]) -> list[int]:
    if isinstance(sampler, DeviceSampler):
        sampler.flush()
        return [int(token) for token in sampler.sample(logits, torch.tensor(slots, dtype=torch.int32))]
    return [int(token) for token in sampler.sample(logits.clone(), np.array(slots, np.int32)).token_ids]


@pytest.mark.parametrize("kernels", [False, True], ids=["reference", "interpreted"])
def test_sequences_that_come_fork_and_go_get_the_cpu_samplers_tokens(kernels: bool) -> None:
    kinds = [*FILTERS_AND_EDITS, *EACH_ALONE]
    device = make_sampler(5, VOCAB, chunk=64, sample=interpreted() if kernels else sampling.sample)
    samplers = (Sampler(5, VOCAB), device)
    rng, occupied, started = np.random.default_rng(3), set[int](), 0
    for number in range(40 if kernels else 150):
        for slot in [slot for slot in occupied if rng.random() < 0.15]:
            occupied.remove(slot)
            for sampler in samplers:
                sampler.release(slot)
        for slot in [slot for slot in range(4) if slot not in occupied and rng.random() < 0.6]:
            occupied.add(slot)
            output = tuple(rng.integers(0, VOCAB, rng.integers(0, 4)).tolist())
            admit(samplers, slot, kinds[started % len(kinds)], seed=int(rng.integers(2**62)) * 3, output=output)
            started += 1
        if 4 not in occupied and occupied and rng.random() < 0.3:
            source = min(occupied)
            occupied.add(4)
            for sampler in samplers:
                sampler.fork(source, 4, 9)
        if slots := [slot for slot in sorted(occupied, reverse=True) if rng.random() < 0.8]:
            logits = make_logits(len(slots), VOCAB, seed=number)
            expected, actual = (step(sampler, logits, slots) for sampler in samplers)
            assert actual == expected


def test_penalties_follow_the_tokens_that_were_sampled() -> None:
    sampler = make_sampler(1, VOCAB)
    admit((sampler,), 0, SamplingParams(temperature=0.0, frequency_penalty=1.0), output=(2, 2))
    logits = torch.zeros(1, VOCAB)
    logits[0, [7, 2]] = torch.tensor([2.5, 2.75])
    assert [step(sampler, logits, [0])[0] for _ in range(5)] == [7, 7, 2, 7, 0]
    counts = sampler.state.counts[0]
    assert counts[[7, 2, 0]].tolist() == [3, 3, 1]
    assert counts[[3, 1, 4, 5]].tolist() == [IN_PROMPT] * 4


def test_a_slot_used_again_starts_without_the_history_before() -> None:
    sampler = make_sampler(1, VOCAB)
    admit((sampler,), 0, SamplingParams(temperature=0.0, presence_penalty=2.0, logit_bias={9: 50.0}))
    logits = make_logits(1, VOCAB)
    assert step(sampler, logits, [0]) == [9]
    sampler.release(0)
    admit((sampler,), 0, SamplingParams(temperature=0.0, repetition_penalty=1.5))
    sampler.flush()
    assert sampler.state.counts[0].nonzero().flatten().tolist() == sorted(set(PROMPT))


def test_forks_share_the_history_but_not_the_stream() -> None:
    sampler = make_sampler(2, VOCAB)
    admit((sampler,), 0, SamplingParams(presence_penalty=0.5), seed=11)
    logits = make_logits(1, VOCAB, spread=0.5)
    step(sampler, logits, [0])
    sampler.fork(0, 1, choice=1)
    assert torch.equal(sampler.state.counts[0], sampler.state.counts[1])
    source, target = sampler.state.slots.numpy().view(SLOT_DTYPE)[:, 0]
    assert (source["choice"], target["choice"], source["num_outputs"], target["num_outputs"]) == (0, 1, 1, 1)
    tokens = [step(sampler, logits.repeat(2, 1), [0, 1]) for _ in range(10)]
    assert any(first != second for first, second in tokens)
    assert not torch.equal(sampler.state.counts[0], sampler.state.counts[1])


def test_stop_tokens_are_forbidden_until_min_tokens() -> None:
    sampler = make_sampler(1, VOCAB)
    admit((sampler,), 0, SamplingParams(temperature=0.0, min_tokens=3), output=(1,), stop_ids=(8, 0, VOCAB + 5, 8))
    logits = torch.zeros(1, VOCAB)
    logits[0, [8, 0, 4]] = torch.tensor([9.0, 8.0, 7.0])
    assert [step(sampler, logits, [0])[0] for _ in range(4)] == [4, 4, 8, 8]


def test_log_probabilities_are_of_the_logits_as_the_model_gives_them() -> None:
    samplers = (Sampler(3, VOCAB), make_sampler(3, VOCAB))
    for slot, count in enumerate((None, 0, 3)):
        admit(samplers, slot, SamplingParams(temperature=0.0, logprobs=count, logit_bias={4: 60.0}))
    logits, slots = make_logits(3, VOCAB), np.arange(3, dtype=np.int32)
    cpu, device = samplers
    expected = cpu.sample(logits.clone(), slots)
    device.flush()
    tokens = device.sample(logits, torch.from_numpy(slots))
    assert device.reports_logprobs(slots)
    assert not device.reports_logprobs(slots[:1])
    assert device.gather_logprobs(logits, slots, tokens) == expected.logprobs
    assert device.gather_logprobs(logits[:1], slots[:1], tokens[:1]) == {}


def test_what_does_not_fit_is_refused() -> None:
    sampler = make_sampler(2, 2000)
    admit((sampler,), 0, SamplingParams())
    with pytest.raises(ValueError, match="slot 0 is occupied"):
        admit((sampler,), 0, SamplingParams())
    with pytest.raises(ValueError, match="slot 1 is free already"):
        sampler.release(1)
    with pytest.raises(ValueError, match="cannot fork slot 1 to 1"):
        sampler.fork(1, 1, 1)
    with pytest.raises(ValueError, match=f"at most {MAX_STOP_IDS}"):
        admit((sampler,), 1, SamplingParams(min_tokens=1), stop_ids=tuple(range(MAX_STOP_IDS + 1)))
    with pytest.raises(ValueError, match="do not fit"):
        sampler.sample(torch.zeros(1, 1999), torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ValueError, match="float32"):
        sampler.sample(torch.zeros(1, 2000, dtype=torch.float64), torch.zeros(1, dtype=torch.int32))
