"""How an answer looks: chat completions and legacy completions, streamed and whole.

Streamed chunks are put together from prepared bytes: 0.5 us a chunk, where encoding the whole object takes 0.7 us with
msgspec and 2.9 us with json.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec

from shoal.api.generation.v1 import generation_pb2
from shoal.gateway.http.logprobs import chat_logprobs, completion_logprobs
from shoal.gateway.journal import Message
from shoal.gateway.text.vocabulary import Vocabulary

DONE: Final = b"data: [DONE]\n\n"
_FINISH_REASONS: Final = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_CANCELLED: "abort",  # vLLM's word; OpenAI has none
}
_encode = msgspec.json.Encoder().encode


class Choice:
    """One choice of a whole answer, as its messages add up."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[Any] = []
        self.last = Message()

    def add(self, message: Message) -> None:
        """The next message of this choice."""
        self.texts.append(message.text)
        self.logprobs.extend(message.logprobs)
        self.last = message


class Shape(ABC):
    """Formats one answer. `wants_logprobs` makes each chunk carry them."""

    chunk_object: ClassVar[str]
    object: ClassVar[str]
    id_prefix: ClassVar[str]

    def __init__(
        self, *, name: str, model: str, fingerprint: str, vocabulary: Vocabulary, logprobs: bool, usage: bool
    ) -> None:
        self._head = {
            "id": f"{self.id_prefix}-{name}",
            "object": self.object,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        chunk_head = _encode(self._head | {"object": self.chunk_object})
        self._prefix = b"data: " + chunk_head[:-1] + b',"choices":['
        self._usage = usage
        self._suffix = (b'],"usage":null}\n\n') if usage else b"]}\n\n"
        self._vocabulary = vocabulary
        self._logprobs = logprobs

    @abstractmethod
    def chunk(self, choice: int, message: Message) -> bytes:
        """The server-sent events for one message of a choice; may be empty."""

    @abstractmethod
    def _whole(self, choice: Choice) -> dict[str, Any]:
        """One choice of a whole answer, without its index."""

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that was asked for usage; else nothing."""
        return self._prefix + b'],"usage":' + _encode(usage) + b"}\n\n" if self._usage else b""

    def body(self, choices: Sequence[Choice], usage: dict[str, Any]) -> bytes:
        """A whole answer."""
        whole = [{"index": index} | self._whole(choice) | _ending(choice.last) for index, choice in enumerate(choices)]
        return _encode(self._head | {"choices": whole, "usage": usage})


class ChatShape(Shape):
    """chat.completion and chat.completion.chunk."""

    chunk_object = "chat.completion.chunk"
    object = "chat.completion"
    id_prefix = "chatcmpl"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._opened: set[int] = set()

    def chunk(self, choice: int, message: Message) -> bytes:
        """The role comes in a chunk of its own before the first text, the reason in one of its own at the end."""
        chunks = b""
        if choice not in self._opened:
            self._opened.add(choice)
            chunks = self._delta(choice, b'{"role":"assistant","content":""}', b"null", b"")
        if message.text or (self._logprobs and message.logprobs):
            logprobs = _encode(chat_logprobs(message.logprobs, self._vocabulary)) if self._logprobs else b"null"
            chunks += self._delta(choice, b'{"content":' + _encode(message.text) + b"}", logprobs, b"")
        if message.finish_reason:
            chunks += self._delta(choice, b"{}", b"null", _encode(_ending(message))[1:-1])
        return chunks

    def _delta(self, choice: int, delta: bytes, logprobs: bytes, ending: bytes) -> bytes:
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,%b}%b' % (
            self._prefix, choice, delta, logprobs, ending or b'"finish_reason":null', self._suffix,
        )  # fmt: skip

    def _whole(self, choice: Choice) -> dict[str, Any]:
        logprobs = chat_logprobs(choice.logprobs, self._vocabulary) if self._logprobs else None
        message = {"role": "assistant", "content": "".join(choice.texts), "refusal": None}
        return {"message": message, "logprobs": logprobs}


class CompletionShape(Shape):
    """text_completion, the same object streamed and whole."""

    chunk_object = "text_completion"
    object = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._offsets: dict[int, int] = {}

    def chunk(self, choice: int, message: Message) -> bytes:
        """One chunk a message that shows anything."""
        if not (message.text or message.finish_reason or (self._logprobs and message.logprobs)):
            return b""
        logprobs = b"null"
        if self._logprobs:
            shown = completion_logprobs(message.logprobs, self._vocabulary, self._offsets.get(choice, 0))
            self._offsets[choice] = shown.pop("end_offset")
            logprobs = _encode(shown)
        ending = _encode(_ending(message))[1:-1] if message.finish_reason else b'"finish_reason":null'
        return b'%b{"index":%d,"text":%b,"logprobs":%b,%b}%b' % (
            self._prefix, choice, _encode(message.text), logprobs, ending, self._suffix,
        )  # fmt: skip

    def _whole(self, choice: Choice) -> dict[str, Any]:
        logprobs = completion_logprobs(choice.logprobs, self._vocabulary, 0) if self._logprobs else None
        if logprobs is not None:
            del logprobs["end_offset"]
        return {"text": "".join(choice.texts), "logprobs": logprobs}


def usage_of(num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


def _ending(message: Message) -> dict[str, Any]:
    """`stop_reason` is vLLM's: the stop string or the token that ended the choice, if one did."""
    stop_reason: str | int | None = message.stop_text or None
    if stop_reason is None and message.HasField("stop_token_id"):
        stop_reason = message.stop_token_id
    return {"finish_reason": _FINISH_REASONS.get(message.finish_reason), "stop_reason": stop_reason}
