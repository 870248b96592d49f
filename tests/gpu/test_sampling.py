"""Sampling kernels as they serve: a large vocabulary, compiled, in CUDA graphs, with the torch sampler beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.kernels.sampling import SLOT_DTYPE, reference
from shoal.model_worker.sampling.params import SampledSequence, SamplingParams
from shoal.model_worker.sampling.sampler import Sampler
from support.device_sampling import (
    EACH_ALONE,
    FILTERS_AND_EDITS,
    PROMPT,
    admit_all,
    is_right,
    make_logits,
    make_sampler,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

VOCAB = 151_936
KINDS = [
    *EACH_ALONE,
    *FILTERS_AND_EDITS,
    SamplingParams(top_k=5000),
    SamplingParams(temperature=1.2, top_k=1000, top_p=0.97),
    SamplingParams(logit_bias=dict.fromkeys(range(0, 3072, 3), -50.0), top_p=0.9),
]


@pytest.mark.parametrize("spread", [0.3, 2.0, 4.0], ids=["flat", "middle", "peaked"])
def test_every_parameter_on_a_large_vocabulary(spread: float) -> None:
    """Differences from the torch sampler are rare and by rounding; the state goes on alike."""
    device, definition = make_sampler(len(KINDS), VOCAB, device="cuda"), make_sampler(len(KINDS), VOCAB)
    cpu = Sampler(len(KINDS), VOCAB)
    admit_all((device, definition), KINDS)
    for slot, params in enumerate(KINDS):
        cpu.admit(slot, SampledSequence(params, 77 + slot, slot % 3, PROMPT, len(PROMPT), (0, 8)))
    slots = np.arange(len(KINDS), dtype=np.int32)
    on_device = torch.from_numpy(slots).cuda()
    others = 0
    for step in range(4):
        logits = make_logits(len(KINDS), VOCAB, seed=step, spread=spread)
        given = logits.cuda()
        tokens = device.sample(given, on_device).tolist()
        assert torch.equal(given.cpu(), logits)
        wrong = [
            KINDS[slot]
            for slot, token in enumerate(tokens)
            if not is_right(logits[slot], slot, definition.state, token, 3e-5)
        ]
        assert not wrong
        if step == 0:  # later the histories differ where a token did
            others = sum(np.array(tokens) != cpu.sample(logits, slots).token_ids)
        for name in ("slots", "counts"):
            getattr(definition.state, name).copy_(getattr(device.state, name))
    assert others <= 3


def test_a_row_alone_and_in_a_batch() -> None:
    together, alone = make_sampler(len(KINDS), VOCAB, device="cuda"), make_sampler(len(KINDS), VOCAB, device="cuda")
    admit_all((together, alone), KINDS)
    logits = make_logits(len(KINDS), VOCAB).cuda()
    slots = torch.arange(len(KINDS), dtype=torch.int32, device="cuda")
    tokens = together.sample(logits, slots)
    assert [int(alone.sample(logits[i : i + 1], slots[i : i + 1])) for i in range(len(KINDS))] == tokens.tolist()


def test_a_captured_step_follows_changing_parameters() -> None:
    """One graph, replayed while slots come, fork and go, gives what eager calls give."""
    captured, eager = make_sampler(8, VOCAB, device="cuda"), make_sampler(8, VOCAB, device="cuda")
    logits = torch.zeros((4, VOCAB), device="cuda")
    slots = torch.full((4,), -1, dtype=torch.int32, device="cuda")
    captured.sample(logits, slots)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = captured.sample(logits, slots)
    rng, occupied = np.random.default_rng(0), set[int]()
    for round_ in range(20):
        chosen = rng.permutation(8)[: rng.integers(1, 5)].tolist()
        for slot in chosen:
            params, seed = KINDS[int(rng.integers(len(KINDS)))], int(rng.integers(2**62))
            for sampler in (captured, eager):
                if slot in occupied:
                    sampler.release(slot)
                sampler.admit(slot, SampledSequence(params, seed, 0, PROMPT, len(PROMPT), (0, 8)))
            occupied.add(slot)
        for sampler in (captured, eager):
            sampler.flush()
        logits.copy_(make_logits(4, VOCAB, seed=round_, spread=3.0))
        slots.copy_(torch.tensor([*chosen, *([-1] * (4 - len(chosen)))], dtype=torch.int32))
        for _ in range(3):
            graph.replay()
            assert tokens.tolist() == eager.sample(logits, slots).tolist()
    assert torch.equal(captured.state.counts, eager.state.counts)


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.9), SamplingParams(top_p=0.7)], ids=["plain", "top_p"])
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    from scipy import stats

    rows, size = 4096, 50
    sampler = make_sampler(rows, size, device="cuda")
    row = make_logits(1, size, spread=1.0)
    slots, counts = torch.arange(rows, dtype=torch.int32, device="cuda"), np.zeros(size, np.int64)
    admit_all((sampler,), [params] * rows, first_seed=500)
    scalars = sampler.state.slots[0].cpu().numpy().view(SLOT_DTYPE)[0]
    for _ in range(10):
        counts += np.bincount(sampler.sample(row.repeat(rows, 1).cuda(), slots).cpu().numpy(), minlength=size)
    scaled = (row[0] - row.max()).double().numpy() / params.temperature
    weights = reference.filtered_weights(scaled, scalars)
    expected = weights / weights.sum() * counts.sum()
    assert not counts[weights == 0].any()
    common = expected >= 5
    assert (
        stats.chisquare(counts[common], expected[common] / expected[common].sum() * counts[common].sum()).pvalue > 1e-3
    )
