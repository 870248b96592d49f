"""Puts the chunks of a stream together into a `Completion`, and measures them."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.client.results import Choice, Chunk, Completion, FinishReason, PositionLogprobs, Usage
from shoal.rpc.errors import Internal


@dataclass(slots=True)
class _Growing:
    """One choice while it grows."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    first_s: float | None = None
    last_s: float | None = None


class Collector:
    """Owned by one stream; fed each chunk in order of arrival."""

    def __init__(self, num_choices: int, start_s: float) -> None:
        """`start_s` is when the call began, on the clock that `add` uses."""
        self._choices = [_Growing() for _ in range(num_choices)]
        self._start_s = start_s
        self._usage: Usage | None = None
        self._num_restored_tokens = 0
        self._seed: int | None = None
        self._request_id = self._worker = self._model = ""
        self._prompt_logprobs: tuple[PositionLogprobs, ...] = ()

    def add(self, chunk: Chunk, now_s: float) -> None:
        """Takes one chunk in. Raises Internal when the server skipped or repeated tokens."""
        choice = self._take(chunk)
        if chunk.token_ids or chunk.text:
            choice.first_s = now_s if choice.first_s is None else choice.first_s
            choice.last_s = now_s

    def restore(self, chunk: Chunk, num_tokens: int) -> None:
        """Takes in what an earlier process got of a choice, all in one: `num_tokens`, which count for no time."""
        self._take(chunk)
        self._num_restored_tokens += num_tokens

    def _take(self, chunk: Chunk) -> _Growing:
        if chunk.choice >= len(self._choices):
            raise Internal(f"the server sent choice {chunk.choice} of a request for {len(self._choices)}")
        choice = self._choices[chunk.choice]
        if chunk.token_ids and chunk.first_token_index != len(choice.token_ids):
            raise Internal(
                f"the server sent token {chunk.first_token_index} of choice {chunk.choice} "
                f"where token {len(choice.token_ids)} was due"
            )
        choice.texts.append(chunk.text)
        choice.token_ids += chunk.token_ids
        choice.logprobs += chunk.logprobs
        choice.finish_reason = chunk.finish_reason or choice.finish_reason
        choice.stop_reason = choice.stop_reason if chunk.stop_reason is None else chunk.stop_reason
        self._usage = chunk.usage or self._usage
        self._request_id = chunk.request_id or self._request_id
        self._worker = chunk.worker or self._worker
        self._model = chunk.model or self._model
        self._seed = self._seed if chunk.seed is None else chunk.seed
        self._prompt_logprobs = chunk.prompt_logprobs or self._prompt_logprobs
        return choice

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return all(choice.finish_reason is not None for choice in self._choices)

    def completion(self) -> Completion:
        """What arrived so far."""
        return Completion(
            choices=tuple(
                Choice(i, "".join(c.texts), tuple(c.token_ids), c.finish_reason, c.stop_reason, tuple(c.logprobs))
                for i, c in enumerate(self._choices)
            ),
            usage=self._final_usage(),
            request_id=self._request_id,
            worker=self._worker,
            model=self._model,
            ttft_s=self._ttft_s(),
            itl_s=self._itl_s(),
            prompt_logprobs=self._prompt_logprobs,
            seed=self._seed,
        )

    def _final_usage(self) -> Usage:
        """The server's count; of a stream given up early, what it said first and the tokens seen since."""
        usage = self._usage or Usage(0, 0, 0)
        seen = sum(len(choice.token_ids) for choice in self._choices)
        return Usage(usage.prompt_tokens, max(usage.completion_tokens, seen), usage.cached_tokens)

    def _ttft_s(self) -> float | None:
        firsts = [choice.first_s for choice in self._choices if choice.first_s is not None]
        return min(firsts) - self._start_s if firsts else None

    def _itl_s(self) -> float | None:
        spans = [c.last_s - c.first_s for c in self._choices if c.first_s is not None and c.last_s is not None]
        num_gaps = self._final_usage().completion_tokens - self._num_restored_tokens - len(spans)
        return sum(spans) / num_gaps if num_gaps > 0 else None
