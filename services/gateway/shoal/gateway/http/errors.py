"""Domain errors as OpenAI clients know them."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from shoal.rpc.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ShoalError,
    Unauthenticated,
    Unavailable,
)

_TYPES: Final[list[tuple[type[ShoalError], str]]] = [
    (InvalidArgument, "invalid_request_error"),
    (NotFound, "invalid_request_error"),
    (Unauthenticated, "authentication_error"),
    (PermissionDenied, "permission_error"),
    (ResourceExhausted, "rate_limit_error"),
    (DeadlineExceeded, "timeout_error"),
    (Cancelled, "cancelled_error"),
]
_PARAMS: Final = {
    "text": "prompt",
    "tokens": "prompt",
    "tokens.ids": "prompt",
    "chat": "messages",
    "chat.messages": "messages",
}


def error_body(error: ShoalError) -> bytes:
    """`{"error": {message, type, param, code}}`. Fields are called what the HTTP request calls them."""
    message, param = error.message, error.field
    if param is not None:
        param = _PARAMS.get(param, param.removeprefix("sampling."))
        if message.startswith(f"{error.field}:"):
            message = param + message[len(error.field or "") :]
    kind = next((name for cls, name in _TYPES if isinstance(error, cls)), "server_error")
    return _encoded(message, kind, param, _code(error))


def error_headers(error: ShoalError) -> list[tuple[bytes, bytes]]:
    """Retry-After where coming back helps, in whole seconds."""
    if isinstance(error, (ResourceExhausted, Unavailable)):
        seconds = max(1, math.ceil(error.retry_after_s or 1.0))
        return [(b"retry-after", b"%d" % seconds)]
    return [(b"www-authenticate", b"Bearer")] if isinstance(error, Unauthenticated) else []


def _code(error: ShoalError) -> str:
    if isinstance(error, Unauthenticated):
        return "invalid_api_key"
    if isinstance(error, NotFound) and error.field in ("model", None):
        return "model_not_found"
    return error.reason.lower()


def _encoded(message: str, kind: str, param: str | None, code: str) -> bytes:
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return msgspec.json.encode(body)
