"""What the synchronous and the asynchronous client share: settings of a channel, the course of a call, its errors.

Nothing here does input or output: the clients feed in what the transport said and are told what to do.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

import grpc

from shoal.client.endpoint import Endpoint, parse_endpoint
from shoal.client.retry import Attempts, Resumes, RetryBudget, RetryPolicy
from shoal.rpc.errors import Cancelled, DeadlineExceeded, InvalidArgument, ShoalError, Unavailable
from shoal.rpc.status import from_rpc_error

DEFAULT_TIMEOUT_S = 600.0
MAX_MESSAGE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What a client was made with."""

    endpoint: Endpoint
    api_key: str | None
    timeout_s: float
    retry: RetryPolicy
    root_certificates: bytes | None
    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random
    budget: RetryBudget = field(init=False)
    closed: threading.Event = field(init=False, default_factory=threading.Event)
    """Set once the client was closed: nothing is sent any more."""

    def __post_init__(self) -> None:
        _check_timeout(self.timeout_s)
        object.__setattr__(self, "budget", RetryBudget(self.retry))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Headers of every call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    @property
    def channel_options(self) -> list[tuple[str, str | int]]:
        """Options of the gRPC channel."""
        return [
            ("grpc.primary_user_agent", f"shoal-client/{metadata.version('shoal')}"),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),  # a peer that vanished without a word shows within a minute
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.initial_reconnect_backoff_ms", 100),  # else the first retries meet a channel that does not try
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.enable_http_proxy", 0 if self.endpoint.is_loopback else 1),
            ("grpc.service_config_disable_resolution", 1),  # retries are ours, never a DNS record's
        ]

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, or None for plaintext."""
        return grpc.ssl_channel_credentials(self.root_certificates) if self.endpoint.tls else None

    def check_open(self) -> None:
        """Raises Cancelled once the client was closed."""
        if self.closed.is_set():
            raise Cancelled("the client is closed; make another one")

    def start(self, timeout_s: float | None) -> Course:
        """Begins a call with a deadline; None means the client's default."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        _check_timeout(limit_s)
        return Course(self, limit_s)


def make_settings(
    endpoint: str,
    api_key: str | None,
    timeout_s: float,
    retry: RetryPolicy | None,
    root_certificates: bytes | None,
    clock: Callable[[], float],
) -> ClientSettings:
    """Settings from a client's arguments. Raises InvalidArgument."""
    return ClientSettings(
        endpoint=parse_endpoint(endpoint),
        api_key=api_key,
        timeout_s=timeout_s,
        retry=retry or RetryPolicy(),
        root_certificates=root_certificates,
        clock=clock,
    )


class Course:
    """One call from its start to its end, over all its attempts."""

    def __init__(self, settings: ClientSettings, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self.start_s = settings.clock()
        deadline_s = self.start_s + timeout_s
        self._attempts = Attempts(settings.retry, settings.budget, deadline_s, settings.clock, settings.random)
        self.resumes = Resumes(settings.retry, deadline_s, settings.clock, settings.random)

    @property
    def remaining_s(self) -> float:
        """The timeout to give the transport for the next attempt."""
        return self._attempts.remaining_s

    def succeeded(self) -> None:
        """The first answer arrived."""
        self._attempts.succeeded()

    def wait_after(self, error: grpc.RpcError) -> float:
        """Seconds to wait before the next attempt. Raises the typed error when there is to be none."""
        wait_s = self._attempts.wait_after(from_rpc_error(error))
        if wait_s is None:
            raise self.typed(error) from error
        return wait_s

    def typed(self, error: grpc.RpcError) -> ShoalError:
        """The error to raise for a failed call."""
        typed = from_rpc_error(error)
        url = self._settings.endpoint.url
        if isinstance(typed, Unavailable) and "connect" in typed.message and typed.retry_after_s is None:
            return Unavailable(f"cannot reach {url}: {typed.message}")
        if isinstance(typed, DeadlineExceeded) and "Deadline Exceeded" in typed.message:  # gRPC's own words
            return DeadlineExceeded(f"{url} did not finish within {self._timeout_s:g} s; raise timeout_s")
        return typed


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s < float("inf"):
        raise InvalidArgument("timeout_s", f"{timeout_s} is not a deadline: give a number of seconds above 0")
