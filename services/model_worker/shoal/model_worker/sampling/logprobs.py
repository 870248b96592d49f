"""Log-probabilities as clients ask for them: of the model's own distribution, before temperature and filters."""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.model_worker.sampling.params import MAX_LOGPROBS
from shoal.model_worker.step import TokenLogprobs

_ROWS_AT_ONCE = 128
"""Bounds the extra memory of a long prompt: 128 rows of 150k logits are 77 MB."""


def gather_logprobs(logits: Tensor, token_ids: Tensor, counts: list[int]) -> list[TokenLogprobs]:
    """One entry a row: the token `token_ids[i]` (int64 [R]) and the `counts[i]` most likely ones under `logits[i]`.

    `logits` float32 [R, V] is left as it is. Tokens of equal probability are listed by id, and share the best rank.
    """
    entries: list[TokenLogprobs] = []
    for start in range(0, len(counts), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        entries.extend(_gather(logits[rows], token_ids[rows], counts[rows]))
    return entries


def _gather(logits: Tensor, token_ids: Tensor, counts: list[int]) -> list[TokenLogprobs]:
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, token_ids[:, None])
    ranks = (logprobs > chosen).sum(-1) + 1
    # The limit, not the largest count: which of equal values topk returns depends on how many it is asked for.
    top_values, top_ids = logprobs.topk(min(MAX_LOGPROBS, logits.shape[-1]), dim=-1)
    rows = zip(
        token_ids.tolist(), chosen[:, 0].tolist(), ranks.tolist(), top_values.tolist(), top_ids.tolist(), counts,
        strict=True,
    )  # fmt: skip
    entries = []
    for token_id, logprob, rank, values, ids, count in rows:
        ordered = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))
        entries.append(TokenLogprobs(token_id, logprob, rank, tuple(ordered[:count])))
    return entries


def prompt_logprobs(logits: Tensor, next_ids: Tensor, k: int) -> tuple[TokenLogprobs, ...]:
    """How likely each prompt token was: row i of `logits` (float32 [T, V]) predicts `next_ids[i]` (integers [T]).

    Each entry also lists the `k` (0 to 20) most likely tokens. Called by runners for slots that ask for it.
    """
    return tuple(gather_logprobs(logits, next_ids.long().to(logits.device), [k] * logits.shape[0]))
