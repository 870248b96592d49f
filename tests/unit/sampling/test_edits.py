from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model_worker.sampling.edits import edit_logits
from shoal.model_worker.sampling.history import TokenCounts
from shoal.model_worker.sampling.params import SampledSequence, SamplingParams
from shoal.model_worker.sampling.slots import SamplingSlots
from support.sampling_reference import edited_logits

VOCAB = 12
TOKENS = st.integers(0, VOCAB - 1)
PENALTIES = st.floats(-2, 2, width=16)

sequences = st.fixed_dictionaries(
    {
        "params": st.builds(
            SamplingParams,
            frequency_penalty=st.one_of(st.just(0.0), PENALTIES),
            presence_penalty=st.one_of(st.just(0.0), PENALTIES),
            repetition_penalty=st.one_of(st.just(1.0), st.floats(0.25, 2, width=16)),
            logit_bias=st.dictionaries(TOKENS, st.floats(-100, 100, width=16), max_size=4),
            min_tokens=st.integers(0, 4),
        ),
        "prompt": st.lists(TOKENS, min_size=1, max_size=8),
        "known": st.lists(TOKENS, max_size=4),
        "later": st.lists(TOKENS, min_size=2, max_size=2),
        "stop_ids": st.lists(TOKENS, max_size=3),
        "logits": st.lists(st.floats(-20, 20, width=16), min_size=VOCAB, max_size=VOCAB),
    }
)


@settings(max_examples=200, deadline=None)
@given(batch=st.lists(sequences, min_size=1, max_size=5))
def test_edits_match_their_definition(batch: list[dict[str, Any]]) -> None:
    state = SamplingSlots(len(batch), VOCAB)
    slots = np.arange(len(batch), dtype=np.int32)[::-1].copy()
    for slot, each in zip(slots.tolist(), batch, strict=True):
        tokens = [*each["prompt"], *each["known"]]
        state.admit(slot, SampledSequence(each["params"], 1, 0, tokens, len(each["prompt"]), each["stop_ids"]))
    for step in (0, 1):
        state.record(slots, np.array([each["later"][step] for each in batch], dtype=np.int32))
    logits = torch.tensor([each["logits"] for each in batch], dtype=torch.float32)
    edit_logits(logits, slots, state)
    for row, each in zip(logits.tolist(), batch, strict=True):
        output = each["known"] + each["later"]
        expected = edited_logits(each["logits"], each["params"], each["prompt"], output, each["stop_ids"])
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(prompt=st.lists(TOKENS), output=st.lists(TOKENS), more=st.lists(st.integers(0, 200), max_size=60))
def test_counts_grow_as_tokens_come(prompt: list[int], output: list[int], more: list[int]) -> None:
    counts = TokenCounts.of(prompt, output)
    before = counts.copy()
    for token in more:
        counts.add(token)
    for each, produced in ((counts, output + more), (before, output)):
        got = dict(zip(each.ids.tolist(), each.output_counts.tolist(), strict=True))
        assert got == {token: produced.count(token) for token in {*prompt, *produced}}


def test_counts_are_kept_only_for_penalties() -> None:
    state = SamplingSlots(3, VOCAB)
    state.admit(0, SampledSequence(SamplingParams(temperature=0.5, top_k=3, logit_bias={1: 1.0}), 1, 0, [1, 2], 1, [0]))
    state.admit(1, SampledSequence(SamplingParams(frequency_penalty=0.5), 1, 0, [1, 2], 1, [0]))
    state.fork(1, 2, 1)
    assert state.counts[0] is None
    assert state.counts[1] is not None
    assert state.counts[2] is not None
    assert state.counts[2] is not state.counts[1]
    state.release(1)
    assert state.counts[1] is None
