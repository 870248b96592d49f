"""Changes to logits that can change which token is the most likely: bias, forbidden stop tokens, penalties.

Applied in vLLM's order. Each touches only the tokens it names, so the work grows with those and not with the
vocabulary; every change is elementwise, so a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.model_worker.sampling.rows import to_tensor
from shoal.model_worker.sampling.slots import IntArray, SamplingSlots


def edit_logits(logits: Tensor, slots: IntArray, state: SamplingSlots) -> None:
    """Changes `logits` (float32 [R, V]) in place; row i belongs to slot `slots[i]` ([R])."""
    biased = np.flatnonzero(state.biased[slots])
    if len(biased):
        _add_bias(logits, biased, slots[biased], state)
    early = np.flatnonzero(state.num_outputs[slots] < state.min_tokens[slots])
    if len(early):
        _forbid_stop(logits, early, slots[early], state)
    penalized = np.flatnonzero(state.penalized[slots])
    if len(penalized):
        _penalize(logits, penalized, slots[penalized], state)


def _add_bias(logits: Tensor, rows: NDArray[np.intp], slots: IntArray, state: SamplingSlots) -> None:
    biases = [bias for slot in slots.tolist() if (bias := state.biases[slot]) is not None]
    place = _places(logits, rows, [bias.ids for bias in biases])
    logits[place] += to_tensor(logits, np.concatenate([bias.values for bias in biases]))


def _forbid_stop(logits: Tensor, rows: NDArray[np.intp], slots: IntArray, state: SamplingSlots) -> None:
    stop_ids = [ids for slot in slots.tolist() if (ids := state.stop_ids[slot]) is not None]
    logits[_places(logits, rows, stop_ids)] = -torch.inf


def _penalize(logits: Tensor, rows: NDArray[np.intp], slots: IntArray, state: SamplingSlots) -> None:
    counts = [counts for slot in slots.tolist() if (counts := state.counts[slot]) is not None]
    lengths = [len(each.ids) for each in counts]
    place = _places(logits, rows, [each.ids for each in counts])
    times = to_tensor(logits, np.concatenate([each.output_counts for each in counts]))
    repetition, frequency, presence = (
        to_tensor(logits, np.repeat(penalty[slots], lengths))
        for penalty in (state.repetition_penalty, state.frequency_penalty, state.presence_penalty)
    )
    values = logits[place]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * times
    values -= presence * (times > 0)
    logits[place] = values


def _places(logits: Tensor, rows: NDArray[np.intp], ids: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """(row, token) indices of all `ids`, one array of distinct ids a row."""
    row_of = np.repeat(rows, [len(each) for each in ids])
    return to_tensor(logits, row_of), to_tensor(logits, np.concatenate(ids))
