"""How long prompts take to compute here, learned from the steps that computed some."""

from __future__ import annotations

import math
from typing import Final

_WEIGHT: Final = 0.1
"""Of the latest step."""
_MIN_TOKENS: Final = 32
"""Smaller steps are mostly decoding, and take a time of their own."""


class PrefillRate:
    """An exponentially weighted mean, in logarithms, of tokens a second."""

    def __init__(self, tokens_per_s: float) -> None:
        """tokens_per_s: a first guess, replaced by the first step."""
        self._log_rate = math.log(tokens_per_s)
        self._is_guess = True

    @property
    def tokens_per_s(self) -> float:
        """The mean."""
        return math.exp(self._log_rate)

    def observe(self, num_tokens: int, step_s: float) -> None:
        """A step computed some tokens."""
        if num_tokens < _MIN_TOKENS or step_s <= 0:
            return
        weight = 1.0 if self._is_guess else _WEIGHT
        self._log_rate += weight * (math.log(num_tokens / step_s) - self._log_rate)
        self._is_guess = False
