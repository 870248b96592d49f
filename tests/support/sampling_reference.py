"""Sampling as its definition says, in plain Python and float64: slow, and obviously right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.model_worker.sampling.params import SamplingParams


def edited_logits(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    stop_ids: Sequence[int],
) -> list[float]:
    """Logit bias, forbidden stop tokens, penalties."""
    edited = [logit + params.logit_bias.get(token, 0.0) for token, logit in enumerate(logits)]
    if len(output) < params.min_tokens:
        for token in stop_ids:
            edited[token] = -math.inf
    for token in set(prompt) | set(output):
        penalty = params.repetition_penalty
        edited[token] = edited[token] / penalty if edited[token] > 0 else edited[token] * penalty
    for token in set(output):
        edited[token] -= params.frequency_penalty * output.count(token)
        edited[token] -= params.presence_penalty
    return edited


def probabilities(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """The distribution that a token is drawn from, after temperature (above 0) and the filters."""
    probs = _softmax([logit / params.temperature for logit in logits])
    probs = _keep(probs, [prob >= params.min_p * max(probs) for prob in probs])
    if params.top_k:
        kth = sorted(probs, reverse=True)[min(params.top_k, len(probs)) - 1]
        probs = _keep(probs, [prob >= kth for prob in probs])
    probs = _keep_mass(probs, probs, params.top_p)
    surprise = [-math.log(prob) if prob > 0 else math.inf for prob in probs]
    entropy = sum(prob * bits for prob, bits in zip(probs, surprise, strict=True) if prob > 0)
    return _keep_mass(probs, [-abs(bits - entropy) for bits in surprise], params.typical_p)


def inverse_cdf(probs: Sequence[float], uniform: float) -> int:
    """The token whose share of [0, 1), laid out in the vocabulary's order, holds `uniform`."""
    reached = 0.0
    for token, prob in enumerate(probs):
        reached += prob
        if reached > uniform * sum(probs):
            return token
    raise AssertionError("the probabilities sum to less than the number drawn")


def _softmax(logits: Sequence[float]) -> list[float]:
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def _keep_mass(probs: list[float], scores: Sequence[float], mass: float) -> list[float]:
    """Tokens by falling score until their probabilities reach `mass`, with those tied with the last one."""
    if mass >= 1:
        return probs
    reached, lowest = 0.0, math.inf
    for score, prob in sorted(zip(scores, probs, strict=True), reverse=True):
        if reached >= mass:
            break
        reached += prob
        lowest = score
    return _keep(probs, [score >= lowest for score in scores])


def _keep(probs: list[float], kept: Sequence[bool]) -> list[float]:
    total = sum(prob for prob, keep in zip(probs, kept, strict=True) if keep)
    return [prob / total if keep else 0.0 for prob, keep in zip(probs, kept, strict=True)]
