"""How long prompts take to compute here, learned from the steps that computed some."""

from __future__ import annotations

import math
from typing import Final

_MEMORY_TOKENS: Final = 32_768
"""What was observed so many tokens ago counts 1/e."""
_MIN_TOKENS: Final = 32
"""Smaller steps are mostly decoding, and take a time of their own."""


class PrefillRate:
    """Tokens of the latest steps over their time. A sum and not a mean of rates: a GPU takes 9 ms for 64 tokens and
    200 ms for 8,192, and the large steps say what a long prompt takes."""

    def __init__(self, tokens_per_s: float) -> None:
        """tokens_per_s: a first guess, replaced by the first step."""
        self._num_tokens, self._seconds = 0.0, 0.0
        self._guess = tokens_per_s

    @property
    def tokens_per_s(self) -> float:
        """What the steps showed."""
        return self._num_tokens / self._seconds if self._seconds else self._guess

    def observe(self, num_tokens: int, step_s: float) -> None:
        """A step computed some tokens."""
        if num_tokens < _MIN_TOKENS or step_s <= 0:
            return
        kept = math.exp(-num_tokens / _MEMORY_TOKENS)
        self._num_tokens = kept * self._num_tokens + num_tokens
        self._seconds = kept * self._seconds + step_s
