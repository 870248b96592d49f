"""The Python SDK and the `shoal` command.

    from shoal.client import Client

    with Client("http://127.0.0.1:8080") as client:
        answer = client.chat([{"role": "user", "content": "Name three fish."}], temperature=0, max_tokens=64)
        print(answer.text, answer.usage.cached_tokens, answer.ttft_s)

        with client.stream("Once upon a time", max_tokens=64) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)

`AsyncClient` is the same for event loops. Calls have deadlines, repeat themselves within a budget while nothing has
arrived, and raise the errors of `shoal.rpc.errors`, which are exported here:

    ShoalError: InvalidArgument, PayloadTooLarge, Unauthenticated, PermissionDenied, NotFound, DeadlineExceeded,
    ResourceExhausted, Cancelled, Internal, Unimplemented, Unavailable
"""

from shoal.client.async_client import AsyncClient, AsyncStream
from shoal.client.explanations import AttemptExplanation, CandidateExplanation, Explanation
from shoal.client.options import Options
from shoal.client.requests import MessageLike
from shoal.client.results import (
    Choice,
    Chunk,
    Completion,
    FinishReason,
    Message,
    Model,
    PositionLogprobs,
    TokenLogprob,
    Usage,
)
from shoal.client.retry import RetryPolicy
from shoal.client.sync_client import Client, Stream
from shoal.rpc.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    ResourceExhausted,
    ShoalError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AttemptExplanation",
    "Cancelled",
    "CandidateExplanation",
    "Choice",
    "Chunk",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "Explanation",
    "FinishReason",
    "Internal",
    "InvalidArgument",
    "Message",
    "MessageLike",
    "Model",
    "NotFound",
    "Options",
    "PayloadTooLarge",
    "PermissionDenied",
    "PositionLogprobs",
    "ResourceExhausted",
    "RetryPolicy",
    "ShoalError",
    "Stream",
    "TokenLogprob",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
]
