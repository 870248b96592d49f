"""What is known of one request after it ended."""

from __future__ import annotations

import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to send. Exactly one of the three inputs is set."""

    max_tokens: int
    token_ids: tuple[int, ...] | None = None
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished request. Times are seconds on one monotonic clock."""

    start_s: float
    end_s: float
    output_times_s: tuple[float, ...] = ()
    """When each chunk with output arrived, in order."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error_code: str | None = None
    """A gRPC code's name or `HTTP 503`; None for success."""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None without output."""
        return self.output_times_s[0] - self.start_s if self.output_times_s else None

    @property
    def e2e_s(self) -> float | None:
        """Time to the last token; None without output."""
        return self.output_times_s[-1] - self.start_s if self.output_times_s else None

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Times between successive chunks with output."""
        return tuple(b - a for a, b in itertools.pairwise(self.output_times_s))

    @property
    def itl_s(self) -> float | None:
        """Mean of the gaps; None for fewer than two chunks."""
        gaps = self.gaps_s
        return sum(gaps) / len(gaps) if gaps else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        if not self.output_times_s or self.output_tokens < 2:
            return None
        return (self.output_times_s[-1] - self.output_times_s[0]) / (self.output_tokens - 1)
