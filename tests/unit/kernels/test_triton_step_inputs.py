"""The kernels that make a step's inputs on the device, against their references."""

from __future__ import annotations

import pytest
import torch

from shoal.kernels.step_inputs import DecodeInputs, SlotState, reference

triton_impl = pytest.importorskip("shoal.kernels.step_inputs.triton_impl", reason="needs triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_state() -> SlotState:
    state = SlotState.allocate(9, 7, 16, DEVICE)
    state.block_tables.copy_(torch.arange(63).view(9, 7) * 3)
    state.num_computed.copy_(torch.arange(9) * 11)
    state.last_tokens.copy_(torch.arange(9) + 100)
    return state


def test_a_decoding_step_reads_and_moves_its_slots_on() -> None:
    results = []
    for implementation in (triton_impl, reference):
        state, inputs = make_state(), DecodeInputs.allocate(200, DEVICE)
        inputs.slots[:4] = torch.tensor([3, 0, 8, 5], dtype=torch.int32)
        implementation.fill_inputs(inputs, state)
        chosen = torch.arange(200, device=DEVICE, dtype=torch.int32) + 1000
        implementation.record_tokens(state, inputs.slots, chosen, inputs.seq_lens)
        results.append((inputs, state))
    for kernel, expected in zip(*results, strict=True):
        for field in kernel.__dataclass_fields__:
            if field != "block_size":
                assert torch.equal(getattr(kernel, field), getattr(expected, field)), field
    inputs, state = results[0]
    assert inputs.seq_lens[:5].tolist() == [34, 1, 89, 56, 0]
    assert state.last_tokens.tolist() == [1001, 101, 102, 1000, 104, 1003, 106, 107, 1002]
    assert state.num_computed.tolist() == [1, 11, 22, 34, 44, 56, 66, 77, 89]


def test_tokens_that_only_the_device_knows_are_filled_in() -> None:
    tokens = torch.arange(300, dtype=torch.int32, device=DEVICE)
    tokens[[0, 7, 131, 299]] = torch.tensor([-1, -9, -4, -2], dtype=torch.int32, device=DEVICE)
    for implementation in (triton_impl, reference):
        resolved = tokens.clone()
        implementation.resolve_tokens(resolved, make_state())
        assert resolved[[0, 7, 131, 299]].tolist() == [100, 108, 103, 101]
        assert torch.equal(resolved[tokens >= 0], tokens[tokens >= 0])


def test_words_are_written_where_they_belong() -> None:
    places = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:37]
    entries = torch.stack((places, torch.arange(37) + 500)).int().to(DEVICE)
    for implementation in (triton_impl, reference):
        target = torch.full((6, 10), -1, dtype=torch.int32, device=DEVICE)
        implementation.write_words(target, entries)
        assert target.view(-1)[places.to(DEVICE)].tolist() == entries[1].tolist()
        assert (target == -1).sum() == 23
