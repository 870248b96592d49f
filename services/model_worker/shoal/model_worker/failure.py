"""How the engine says that a request cannot go on: plain data that crosses to the front, without gRPC."""

from __future__ import annotations

from typing import Literal

import msgspec

Reason = Literal[
    "INVALID_ARGUMENT",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "UNAVAILABLE",
    "DRAINING",
    "WORKER_FAILED",
    "INTERNAL",
]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why a request ended without finishing."""

    reason: Reason
    """A row of the error table in `shoal.rpc.errors`."""
    message: str
    """For the client: what was wrong, what is allowed, what to do."""
    field: str = ""
    """Path of the field in GenerateRequest, for INVALID_ARGUMENT."""
    retry_after_s: float = 0.0
    """When it is worth coming back, for RESOURCE_EXHAUSTED, UNAVAILABLE and its kinds."""


class RequestRefused(Exception):
    """Raised by the scheduler for a request that it does not take on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
