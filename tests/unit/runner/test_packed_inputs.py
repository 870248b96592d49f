from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.paged_attention import AttentionShape
from shoal.kernels.paged_attention.gpu_plan import divide_step, max_low_queries
from shoal.model_worker.runner.flat_batch import lay_out
from shoal.model_worker.runner.packed_inputs import PackedInputs, StepArrays, capacity, exact
from shoal.model_worker.runner.slots import SlotArrays
from shoal.model_worker.step import StepPlan

CPU = torch.device("cpu")
MAX_NUM_SEQS = 12


def arrange(counts: list[int], cached: list[int], shape: AttentionShape) -> StepArrays:
    """A step in which slot i computes counts[i] tokens after cached[i], and samples."""
    slots = SlotArrays(MAX_NUM_SEQS, 4096, shape.layout.block_size)
    slots.num_computed[: len(cached)] = cached
    numbers = np.array(counts, np.int32)
    plan = StepPlan((), (), (), (), np.arange(len(counts), dtype=np.int32), numbers, np.ones(len(counts), np.bool_), ())
    tokens = lay_out(plan, slots, shape.layout.block_size)
    work = divide_step(shape, tokens.query_starts, tokens.seq_lens, CPU)
    return StepArrays(tokens, work, tokens.query_starts[1:] - 1, tokens.slots, tokens.seq_lens)


@given(
    heads=st.sampled_from([(32, 8), (9, 3), (8, 8), (16, 1)]),
    sequences=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 3000)), min_size=1, max_size=MAX_NUM_SEQS),
    spare=st.integers(0, 40),
    only_tall=st.booleans(),
)
def test_whatever_a_graph_may_be_given_fits(
    heads: tuple[int, int], sequences: list[tuple[int, int]], spare: int, only_tall: bool
) -> None:
    shape = AttentionShape(RowsLayout(1, heads[1], 64, 16, torch.bfloat16), heads[0])
    low = max_low_queries(shape)
    counts = [count + low if only_tall else count for count, _ in sequences]
    arrays = arrange(counts, [cached for _, cached in sequences], shape)
    shapes = capacity(shape, sum(counts) + spare, MAX_NUM_SEQS, CPU, has_low=not only_tall)
    inputs = PackedInputs(shapes, CPU)
    inputs.write(arrays.named())  # raises where something does not fit
    for name, array in arrays.named().items():
        assert inputs[name][: len(array)].tolist() == array.tolist()
    # What is left must do nothing: no token stored, no sequence attended to, none sampled.
    assert (inputs["slot_mapping"][sum(counts) :] == -1).all()
    assert (inputs["sample_slots"][len(counts) :] == -1).all()
    for kind in ("low", "tall"):
        work = getattr(arrays.work, kind)
        assert (inputs[f"{kind}_items"][len(work.items) :] == -1).all()
        assert (inputs[f"{kind}_merges"][len(work.merges) :] == -1).all()


def test_a_step_of_its_own_has_no_place_left() -> None:
    shape = AttentionShape(RowsLayout(1, 8, 64, 16, torch.bfloat16), 32)
    arrays = arrange([1, 40], [100, 7], shape)
    assert {name: tuple(array.shape) for name, array in arrays.named().items()} == dict(exact(arrays))


def test_what_does_not_fit_is_refused() -> None:
    shape = AttentionShape(RowsLayout(1, 8, 64, 16, torch.bfloat16), 32)
    inputs = PackedInputs(capacity(shape, 16, MAX_NUM_SEQS, CPU, has_low=True), CPU)
    with pytest.raises(ValueError, match="broadcast"):
        inputs.write(arrange([20], [0], shape).named())
