"""Domain errors and the one table that maps them to gRPC codes and HTTP statuses.

Raise these anywhere; the server interceptor (`shoal.rpc.interceptor`) and the gateway's HTTP layer translate them. A
message says what was wrong, which values are allowed and what to do; it is shown to clients as it is, so it must hold
no secrets and no internals.

    ShoalError
    ├── InvalidArgument        INVALID_ARGUMENT     400   names the field
    ├── Unauthenticated        UNAUTHENTICATED      401
    ├── PermissionDenied       PERMISSION_DENIED    403
    ├── NotFound               NOT_FOUND            404
    ├── DeadlineExceeded       DEADLINE_EXCEEDED    408
    ├── PayloadTooLarge        INVALID_ARGUMENT     413   names the limit
    ├── ResourceExhausted      RESOURCE_EXHAUSTED   429   says when to come back
    ├── Cancelled              CANCELLED            499
    ├── Internal               INTERNAL             500
    ├── Unimplemented          UNIMPLEMENTED        501
    └── Unavailable            UNAVAILABLE          503   says when to come back
        ├── StreamLost         UNAVAILABLE          503   from gateways only
        ├── Draining           UNAVAILABLE          503   from workers only
        └── WorkerFailed       UNAVAILABLE          503   from workers only
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class ShoalError(Exception):
    """The root. Not raised itself."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    reason: ClassVar[str] = "INTERNAL"
    """Stable, machine-readable; becomes `google.rpc.ErrorInfo.reason`."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.field = field


class InvalidArgument(ShoalError):
    """The request itself is wrong: repeating it cannot help."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        """`field` is the path of the field in the request; `problem` names the value and what is allowed."""
        super().__init__(f"{field}: {problem}", field=field)


class PayloadTooLarge(InvalidArgument):
    """The request is larger than this deployment takes."""

    http_status = 413
    reason = "PAYLOAD_TOO_LARGE"


class Unauthenticated(ShoalError):
    """Nobody we know."""

    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    reason = "UNAUTHENTICATED"


class PermissionDenied(ShoalError):
    """Somebody we know, who may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    reason = "PERMISSION_DENIED"


class NotFound(ShoalError):
    """What was asked for does not exist; the message names what does."""

    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    reason = "NOT_FOUND"


class DeadlineExceeded(ShoalError):
    """The client's deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 408
    reason = "DEADLINE_EXCEEDED"


class ResourceExhausted(ShoalError):
    """Full right now. Raised before the first token; `retry_after_s` says when it is worth coming back."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    reason = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class Cancelled(ShoalError):
    """The client went away or took the request back."""

    code = grpc.StatusCode.CANCELLED
    http_status = 499
    reason = "CANCELLED"


class Internal(ShoalError):
    """Our fault. Carries a request id and nothing of the inside."""


class Unimplemented(ShoalError):
    """Not something this service does; the message says what does it."""

    code = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501
    reason = "UNIMPLEMENTED"


class Unavailable(ShoalError):
    """Not now: starting, draining, or a part is away. Safe to retry."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    reason = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class StreamLost(Unavailable):
    """A stream was moved from worker to worker as often as a gateway may. To go on at once would only repeat that."""

    reason = "STREAM_LOST"


class Draining(Unavailable):
    """The worker is about to end, in good order: another one can take the request, or go on with it."""

    reason = "DRAINING"


class WorkerFailed(Unavailable):
    """The worker's engine died under the request. Another one can go on with it, unless the request was the cause."""

    reason = "WORKER_FAILED"


BY_REASON: dict[str, type[ShoalError]] = {
    kind.reason: kind
    for kind in (
        InvalidArgument,
        PayloadTooLarge,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        DeadlineExceeded,
        ResourceExhausted,
        Cancelled,
        Internal,
        Unimplemented,
        Unavailable,
        StreamLost,
        Draining,
        WorkerFailed,
    )
}
BY_CODE: dict[grpc.StatusCode, type[ShoalError]] = {
    kind.code: kind for kind in BY_REASON.values() if ShoalError in kind.__bases__
}
