"""What the SDK returns: frozen plain data, no protobuf types.

Times are seconds on the client's clock. Log-probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]
"""Why a completion ended: a stop token or text, `max_tokens` or the model's context, or somebody gave it up."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `Client.chat` also takes mappings with the same keys (OpenAI's shape)."""

    role: str
    """"system", "user", "assistant", "tool", or what the model's template knows."""
    content: str = ""
    name: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Calls that the assistant made, each a JSON object in OpenAI's shape."""
    tool_call_id: str = ""
    """The call that a "tool" message answers."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole request."""

    prompt_tokens: int
    completion_tokens: int
    """Over all choices."""
    cached_tokens: int
    """Prompt tokens whose KV came from the prefix cache."""

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of one token."""

    token_id: int
    logprob: float
    """Before temperature and filters: the model's own distribution."""
    rank: int
    """Its place among all tokens by probability; 1 is the most likely."""


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The log-probabilities at one position."""

    token: TokenLogprob | None
    """The token that stands here. None for the first prompt token, which nothing predicts."""
    top: tuple[TokenLogprob, ...]
    """The most likely tokens, most likely first; as many as were asked for."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of one choice, as they arrived."""

    choice: int
    """Which of the n completions, from 0."""
    first_token_index: int
    """Position of the first of these tokens in the completion, from 0."""
    text: str = ""
    """Empty while text is held back (half a character, or the start of a stop text) and in token-id mode."""
    token_ids: tuple[int, ...] = ()
    """Empty with `output="text"`."""
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    """Set in the last chunk of each choice."""
    stop_reason: str | int | None = None
    """The stop text or stop token id that ended the choice, if one did."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """In the first chunk, when asked for."""
    usage: Usage | None = None
    """In the first chunk (prompt and cached tokens are known) and in the last one of the request."""
    request_id: str = ""
    """In the first chunk, as are `worker` and `model`."""
    worker: str = ""
    model: str = ""
    seed: int | None = None
    """In the first chunk: what the random numbers come from, given or drawn by the gateway."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the n completions of a prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    """None only when the stream was given up before the choice ended."""
    stop_reason: str | int | None = None
    logprobs: tuple[PositionLogprobs, ...] = ()
    """One entry a token, when asked for."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `text`, `token_ids`, `finish_reason`, `stop_reason` and `logprobs` are the first choice's."""

    choices: tuple[Choice, ...]
    usage: Usage
    request_id: str
    """Names the request in the server's logs and traces."""
    worker: str
    """The worker that answered."""
    model: str
    ttft_s: float | None
    """Time to first token: from the call to the first chunk that carries one, retries included. None if none came."""
    itl_s: float | None
    """Mean inter-token latency: (last token - first token) / (tokens - 1), averaged over all choices' gaps. None for
    fewer than two tokens."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    seed: int | None = None
    """What the random numbers came from: the same request with this seed gives the same answer."""

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The first choice's token ids."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """The first choice's."""
        return self.choices[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        """The first choice's."""
        return self.choices[0].stop_reason

    @property
    def logprobs(self) -> tuple[PositionLogprobs, ...]:
        """The first choice's, one entry a token."""
        return self.choices[0].logprobs

    @property
    def message(self) -> Message:
        """The first choice as an assistant's turn, to append to a conversation."""
        return Message("assistant", self.text)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be asked for."""

    name: str
    max_model_len: int
    """Longest prompt plus output, in tokens."""
    vocab_size: int
    created_unix_s: int
    """When the gateway first saw it."""
    has_chat_template: bool
    ready_workers: int
    """Workers that serve it right now."""
