"""The keyword arguments of `generate`, `stream`, `chat` and `chat_stream`, with the names vLLM and OpenAI give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Output = Literal["both", "text", "token_ids"]


class Options(TypedDict, total=False):
    """How to generate. Everything is optional; None means the same as leaving it out. The server checks the ranges."""

    model: str
    """The model's name. Left out: the only one there is."""
    temperature: float | None
    """Divides the logits; 0 means greedy. Range [0, 2]; default 1."""
    top_p: float | None
    """Keeps the smallest set of tokens whose probability reaches this sum. Range (0, 1]; default 1 (off)."""
    top_k: int | None
    """Keeps this many most likely tokens. 0 keeps all."""
    min_p: float | None
    """Keeps tokens at least this fraction as likely as the most likely one. Range [0, 1]; default 0 (off)."""
    typical_p: float | None
    """Locally typical sampling. Range (0, 1]; default 1 (off)."""
    frequency_penalty: float | None
    """Subtracted once per earlier occurrence in the output. Range [-2, 2]; default 0."""
    presence_penalty: float | None
    """Subtracted once if the token occurred in the output. Range [-2, 2]; default 0."""
    repetition_penalty: float | None
    """Divides positive and multiplies negative logits of tokens seen before. Range (0, 2]; default 1."""
    logit_bias: Mapping[int, float] | None
    """Added to the logits of token ids. Values in [-100, 100]; at most 1,024 entries."""
    max_tokens: int | None
    """Upper limit on generated tokens. Left out: as many as the model's context leaves room for."""
    min_tokens: int | None
    """No end-of-sequence or stop token before this many tokens."""
    stop: str | Sequence[str] | None
    """Texts that end the output. At most 64, each of at most 1,024 bytes. Not with `output="token_ids"`."""
    include_stop_text: bool
    """Keep the matched stop text in the output."""
    stop_token_ids: Sequence[int] | None
    """Extra token ids that end the output. At most 256."""
    include_special_tokens: bool
    """Keep special tokens, such as the end-of-sequence one, in the text."""
    ignore_eos: bool
    """Do not end at the model's end-of-sequence tokens."""
    seed: int | None
    """Same seed and same request give the same tokens. Left out: the server draws one."""
    n: int | None
    """Independent completions of one prompt. Range [1, 64]."""
    logprobs: int | None
    """Return the log-probability of each token and of this many most likely ones. Range [0, 20]."""
    prompt_logprobs: int | None
    """The same for each prompt token. Turns prefix caching off for the request."""
    output: Output
    """What comes back: "both" (default), "text", or "token_ids" (no detokenization: the cheapest)."""
    priority: int
    """Smaller runs first. Range [-100, 100]; default 0."""
    request_id: str
    """Names the request in logs and traces. Left out: the gateway makes one."""
    resumable: bool
    """Go on by itself when gateway or connection are lost after the first chunk; without a gap or a repetition. Default
    True. It brings the token ids along, which otherwise `output="text"` saves."""
    timeout_s: float | None
    """Deadline of the whole call, retries included. It reaches the scheduler, which frees the request's memory."""
    tools: Sequence[Mapping[str, Any]] | None
    """Conversations only: tools the model may call, in OpenAI's shape."""
    template_variables: Mapping[str, Any] | None
    """Conversations only: extra variables of the chat template, such as `enable_thinking`."""
    continue_final_message: bool
    """Conversations only: go on with the last message instead of opening a new assistant turn."""


SAMPLING_FIELDS = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "max_tokens",
        "min_tokens",
        "stop_token_ids",
        "ignore_eos",
        "seed",
        "n",
        "logprobs",
        "prompt_logprobs",
    }
)
"""Options that are fields of the same name in `shoal.api.generation.v1.SamplingParams` (a test holds them together)."""

CHAT_FIELDS = frozenset({"tools", "template_variables", "continue_final_message"})
"""Options that only conversations take."""
