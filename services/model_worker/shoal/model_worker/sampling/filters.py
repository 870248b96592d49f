"""Filters that narrow the distribution: min_p, top_k, top_p, typical_p, in that order.

Each is a threshold, and tokens exactly as good as the last one kept are kept with it: the result then depends neither
on the order in which equal tokens happen to be found nor on the rows beside it. No filter sorts a whole vocabulary
unless what it must keep can lie anywhere in it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.model_worker.sampling.draw import block_masses
from shoal.model_worker.sampling.rows import take, to_tensor
from shoal.model_worker.sampling.slots import IntArray, SamplingSlots

_NARROW = 256


def filter_weights(logits: Tensor, slots: IntArray, state: SamplingSlots) -> Tensor:
    """[R, V] float32 weights proportional to the probabilities of what the slots' filters keep, 0 elsewhere.

    `logits` (float32 [R, V]) are divided by temperature and shifted so that each row's largest is 0; overwritten.
    """
    _cut_logits(logits, slots, state)
    weights = torch.softmax(logits, dim=-1)
    rows = np.flatnonzero(state.top_p[slots] < 1)
    if len(rows):
        part = take(weights, rows)
        _keep_top_p(part, to_tensor(weights, state.top_p[slots[rows]]))
        _put(weights, rows, part)
    rows = np.flatnonzero(state.typical_p[slots] < 1)
    if len(rows):
        part = take(weights, rows)
        _keep_typical(part, take(logits, rows), to_tensor(weights, state.typical_p[slots[rows]]))
        _put(weights, rows, part)
    return weights


def _cut_logits(logits: Tensor, slots: IntArray, state: SamplingSlots) -> None:
    """min_p and top_k: both are a lowest logit."""
    with np.errstate(divide="ignore"):
        lowest = np.log(state.min_p[slots])
    top_k = state.top_k[slots]
    limited = np.flatnonzero(top_k)
    if len(limited):
        kth = _kth_largest(logits, limited, top_k[limited])
        lowest[limited] = np.maximum(lowest[limited], kth)
    cut = np.flatnonzero(lowest > -np.inf)
    if len(cut):
        part = take(logits, cut)
        part.masked_fill_(part < to_tensor(logits, lowest[cut])[:, None], -torch.inf)
        _put(logits, cut, part)


def _kth_largest(values: Tensor, rows: NDArray[np.intp], ks: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N] the `ks[i]`-th largest of `values[rows[i]]`."""
    if values.device.type == "cpu":  # 0.03 ms a row of 49,152 for any k; torch.topk takes 0.07 ms at 50, 0.4 ms at 1024
        array = values.numpy()
        kth = [np.partition(array[row], -k)[-k] for row, k in zip(rows.tolist(), ks.tolist(), strict=True)]
        return np.asarray(kth, dtype=np.float32)
    largest = values[to_tensor(values, rows)].topk(int(ks.max()), dim=-1).values
    kth_largest: NDArray[np.float32] = largest.gather(-1, to_tensor(values, ks - 1)[:, None])[:, 0].cpu().numpy()
    return kth_largest


def _keep_top_p(weights: Tensor, mass: Tensor) -> None:
    """Keeps the most likely tokens until their probabilities sum to `mass` (float64 [R]). In place."""
    total = block_masses(weights)[:, -1]
    if weights.device.type == "cpu":
        lowest = torch.from_numpy(_lowest_weights_kept(weights.numpy(), mass.numpy(), total.numpy()))
    else:
        lowest = _lowest_kept(weights, weights, mass * total)
    weights.masked_fill_(weights < lowest[:, None], 0.0)


def _lowest_weights_kept(
    weights: NDArray[np.float32], mass: NDArray[np.float64], total: NDArray[np.float64]
) -> NDArray[np.float32]:
    """[R] the smallest weight that top_p keeps, sorting only weights that can matter.

    Tries the weights above a thousandth of the largest; when they do not sum to `mass`, those above a floor that is
    always low enough: V weights below (1 - mass) * total / V cannot sum to the part that may be dropped (half of it
    leaves room for rounding).
    """
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    floors = np.maximum(0.5 * (1 - mass) * total / weights.shape[-1], smallest)
    return np.asarray(
        [_lowest_weight_kept(*row) for row in zip(weights, floors.tolist(), (mass * total).tolist(), strict=True)],
        dtype=np.float32,
    )


def _lowest_weight_kept(weights: NDArray[np.float32], floor: float, target: float) -> float:
    lowest = 0.0
    for bound in (max(floor, 1e-3 * float(weights.max())), floor):
        ranked = np.sort(weights[weights >= bound])[::-1]
        sums = np.cumsum(ranked, dtype=np.float64)
        reached = int(np.searchsorted(sums, target))
        if reached < len(ranked):
            return float(ranked[reached])
        lowest = float(ranked[-1]) if len(ranked) else 0.0
    return lowest


def _keep_typical(weights: Tensor, logits: Tensor, mass: Tensor) -> None:
    """Locally typical sampling (Meister, Pimentel, Wiher, Cotterell: TACL 2023).

    Keeps the tokens whose information content is closest to the distribution's entropy, until their probabilities sum
    to `mass` (float64 [R]). In place; `logits` differ from the logarithm of the weights by a constant a row.
    """
    total = block_masses(weights)[:, -1]
    largest = weights.amax(-1)
    log_total = torch.from_numpy(np.log((total / largest).cpu().numpy())).to(weights.device)
    kept = weights > 0
    surprise = log_total.float()[:, None] - (logits - logits.amax(-1, keepdim=True))
    entropy = block_masses(torch.where(kept, weights * surprise.clamp(min=0), 0.0))[:, -1] / total
    closeness = torch.where(kept, -(surprise - entropy.float()[:, None]).abs(), -torch.inf)
    lowest = _lowest_kept(closeness, weights, mass * total)
    weights.masked_fill_(closeness < lowest[:, None], 0.0)


def _lowest_kept(scores: Tensor, weights: Tensor, mass: Tensor) -> Tensor:
    """[R] the score of the last token kept when tokens are taken by falling score until their weights reach `mass`."""
    lowest = torch.empty_like(scores[:, 0])
    rows = torch.arange(scores.shape[0], device=scores.device)
    vocab_size = scores.shape[-1]
    for width in (min(_NARROW, vocab_size), vocab_size):
        whole = len(rows) == scores.shape[0]
        ranked, ranked_weights = _rank(
            scores if whole else scores[rows], weights if whole else weights[rows], width, width == vocab_size
        )
        sums = ranked_weights.cumsum(-1, dtype=torch.float64)
        last = (sums < mass[rows, None]).sum(-1)
        found = (last < width) | (width == vocab_size)
        lowest[rows[found]] = ranked.gather(-1, last.clamp(max=width - 1)[:, None])[:, 0][found]
        rows = rows[~found]
        if not len(rows):
            break
    return lowest


def _rank(scores: Tensor, weights: Tensor, width: int, everything: bool) -> tuple[Tensor, Tensor]:
    """The `width` largest scores of each row, falling, and the weights beside them."""
    if everything and scores.device.type == "cpu":  # 0.5 ms a row of 49,152 with AVX-512, where torch.sort takes 1.6 ms
        ids = torch.from_numpy(np.argsort(scores.numpy(), axis=-1)[:, ::-1].copy())
        return scores.gather(-1, ids), weights.gather(-1, ids)
    ranked, ids = scores.topk(width, dim=-1)
    return ranked, weights.gather(-1, ids)


def _put(tensor: Tensor, rows: NDArray[np.intp], part: Tensor) -> None:
    """Puts back what `take` took, after it was changed."""
    if part is not tensor:
        tensor[to_tensor(tensor, rows)] = part
