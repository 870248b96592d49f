"""Bodies of OpenAI requests. Unknown fields are refused by name; what is accepted and ignored is listed on purpose.

Fields mean what OpenAI's reference says; `top_k` to `priority` are vLLM's extensions. Ranges are the domain's concern
(`shoal.gateway.validation`), except where a value would not fit the message it travels in.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Uint32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Ignored: chunks are never padded."""


class Sampled(Struct, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of request have in common."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Uint32 | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: Uint32 | None = None

    top_k: Int32 | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Uint32 | None = None
    ignore_eos: bool = False
    stop_token_ids: list[Uint32] | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    priority: Int32 = 0
    response_format: dict[str, Any] | None = None

    # Accepted and ignored: they change nothing about the answer here.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class ChatMessage(Struct, kw_only=True, forbid_unknown_fields=True):
    """One turn."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    # Parts of an assistant message that clients send back as they got it.
    refusal: str | None = None
    annotations: Any = None
    audio: None = None
    function_call: None = None


class ChatRequest(Sampled, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: Uint32 | None = None
    max_completion_tokens: Uint32 | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: Any = None
    modalities: list[Literal["text"]] | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | UnsetType = UNSET
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Sampled, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: Uint32 | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: Uint32 | None = None
