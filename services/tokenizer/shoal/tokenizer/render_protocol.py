"""What service and render process say to each other: frames of a 4-byte little-endian length and msgpack."""

from __future__ import annotations

import struct
from typing import Any, Final, Literal

import msgspec

MAX_FRAME_BYTES: Final = 1 << 30
_LENGTH = struct.Struct("<I")


class Setup(msgspec.Struct, frozen=True):
    """First frame to a render process."""

    templates: dict[str, str]
    named_tokens: dict[str, str]
    timeout_s: float
    """Wall time of one render; the kernel ends the process after it."""
    memory_bytes: int
    """Address space of the process."""
    max_chars: int
    """Longest rendered text."""


class RenderJob(msgspec.Struct, frozen=True):
    """One conversation."""

    template: str
    """A name in `Setup.templates`."""
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    continue_final_message: bool


class RenderResult(msgspec.Struct, frozen=True):
    """The answer to a job, and to the setup (with an empty text)."""

    outcome: Literal["text", "template_failed", "too_long", "no_memory"]
    text: str
    """The rendered text, or what went wrong."""


def pack(message: msgspec.Struct) -> bytes:
    """A frame."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


def body_length(header: bytes) -> int:
    """The length of the body that follows a 4-byte header."""
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return int(length)
