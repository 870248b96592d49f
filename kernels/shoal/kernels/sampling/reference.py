"""Sampling in float64 numpy, a row at a time, by sorting: its definition, and what runs without a GPU.

A row of V logits: 4 V bytes are read, and V log V comparisons done for each filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from shoal.kernels.sampling import SamplingState

Float64Array = NDArray[np.float64]


def sample(logits: Tensor, slots: Tensor, state: SamplingState) -> Tensor:
    """See `shoal.kernels.sampling.sample`."""
    from shoal.kernels.sampling import PENALIZED, SLOT_DTYPE

    token_ids = torch.zeros(len(slots), dtype=torch.int32, device=logits.device)
    packed = state.slots.cpu().numpy().view(SLOT_DTYPE)[:, 0]
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        token = choose(logits[row].cpu().numpy(), slot, state)
        token_ids[row] = token
        packed["num_outputs"][slot] += 1
        if packed["flags"][slot] & PENALIZED and (int(state.counts[slot, token]) & 0x7FFF) < 0x7FFF:
            state.counts[slot, token] += 1
    state.slots.copy_(torch.from_numpy(packed.view(np.int32).reshape(state.slots.shape)))
    return token_ids


def choose(row: NDArray[np.float32], slot: int, state: SamplingState) -> int:
    """The next token of `slot`, whose logits are `row` [V]. Changes nothing."""
    from shoal.kernels.sampling import GREEDY, SLOT_DTYPE

    params = state.slots[slot].cpu().numpy().view(SLOT_DTYPE)[0]
    edited = edit(row, slot, state)
    largest = edited.max()
    if params["flags"] & GREEDY or largest == -np.inf:
        return int(edited.argmax())
    weights = filtered_weights((edited - largest).astype(np.float64) / float(params["temperature"]), params)
    sums = np.cumsum(weights)
    target = uniform(int(params["seed"]), int(params["num_outputs"]), int(params["choice"])) * sums[-1]
    found = np.flatnonzero((sums > target) & (weights > 0))
    return int(found[0] if len(found) else np.flatnonzero(weights)[-1])


def edit(row: NDArray[np.float32], slot: int, state: SamplingState) -> NDArray[np.float32]:
    """[V] logits with bias, forbidden stop tokens and penalties."""
    from shoal.kernels.sampling import BIASED, PENALIZED, SLOT_DTYPE

    params = state.slots[slot].cpu().numpy().view(SLOT_DTYPE)[0]
    edited = row.copy()
    if params["flags"] & BIASED:
        count = int(params["num_biases"])
        edited[state.bias_ids[slot, :count].cpu().numpy()] += state.bias_values[slot, :count].cpu().numpy()
    if params["num_outputs"] < params["min_tokens"]:
        edited[state.stop_ids[slot, : int(params["num_stop_ids"])].cpu().numpy()] = -np.inf
    if params["flags"] & PENALIZED:
        counts = state.counts[slot].cpu().numpy()
        times, penalty = (counts & 0x7FFF).astype(np.float32), params["repetition_penalty"]
        values = np.where(edited > 0, edited / penalty, edited * penalty)
        values = values - params["frequency_penalty"] * times - params["presence_penalty"] * (times > 0)
        edited = np.where(counts != 0, values.astype(np.float32), edited)
    return np.minimum(np.nan_to_num(edited, nan=-np.inf, posinf=np.inf, neginf=-np.inf), np.finfo(np.float32).max)


def filtered_weights(logits: Float64Array, params: np.void) -> Float64Array:
    """[V] weights of what the filters keep, 0 elsewhere; `logits` [V] with temperature, the largest 0."""
    lowest = np.log(params["min_p"]) if params["min_p"] > 0 else -np.inf
    if params["top_k"]:
        lowest = max(lowest, np.sort(logits)[-int(params["top_k"])])
    weights = np.where(logits >= lowest, np.exp(logits), 0.0)
    weights = _keep_mass(weights, logits, float(params["top_p"]))
    kept = weights > 0
    mean = (weights[kept] * logits[kept]).sum() / weights.sum()
    closeness = np.full_like(logits, -np.inf)
    closeness[kept] = -np.abs(logits[kept] - mean)
    return _keep_mass(weights, closeness, float(params["typical_p"]))


def _keep_mass(weights: Float64Array, scores: Float64Array, mass: float) -> Float64Array:
    """Keeps tokens by falling score until they have `mass` of the weight, with those tied with the last one."""
    if mass >= 1:
        return weights
    order = np.argsort(-scores, kind="stable")
    last = int(np.searchsorted(np.cumsum(weights[order]), mass * weights.sum()))
    return np.where(scores >= scores[order[min(last, len(order) - 1)]], weights, 0.0)


def uniform(seed: int, position: int, choice: int) -> float:
    """A multiple of 2**-53 in [0, 1): Philox-4x32-10, as Salmon et al. (SC 2011) define it."""
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = position, choice, 0, 0
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & low, (first >> 32) ^ c3 ^ k1, first & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return float(((c0 << 32) | c1) >> 11) * 2.0**-53
