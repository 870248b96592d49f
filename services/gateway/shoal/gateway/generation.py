"""One request under way: the worker's messages in, and what is known about each completion so far.

The counts here are what a journal needs: a completion's tokens arrive exactly once and in order, or the request fails.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from opentelemetry import trace

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.gateway import metrics
from shoal.gateway.routing.load import Ticket
from shoal.gateway.routing.router import Pick
from shoal.gateway.upstream import UpstreamCall
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import Cancelled, Internal, ShoalError, Unavailable

Message = gateway_pb2.GenerateResponse


@dataclass(slots=True)
class Completion:
    """One of a request's n completions, as far as the worker has sent it."""

    num_tokens: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """What was decided before the worker was called."""

    request_id: str
    model: ServedModel
    num_prompt_tokens: int
    num_completions: int
    pick: Pick
    arrived_s: float
    """`time.perf_counter()` at arrival."""


class Generation:
    """Use as a context manager around all reading: leaving it ends the upstream call and settles loads and metrics."""

    __slots__ = (
        "_call", "_gaps", "_last_s", "_ticket", "_tokens", "_waiting",
        "admitted", "completions", "num_cached_tokens", "num_prompt_tokens", "raw", "worker",
    )  # fmt: skip

    def __init__(self, admitted: Admitted, call: UpstreamCall, ticket: Ticket) -> None:
        self.admitted = admitted
        self.completions: Sequence[Completion] = [Completion() for _ in range(admitted.num_completions)]
        self.num_prompt_tokens = admitted.num_prompt_tokens
        self.num_cached_tokens = 0
        self.raw = b""
        """The bytes of the message that `read` returned last."""
        self.worker = ""
        """ip:port of the worker that answers, when known; set by `start`."""
        self._call = call
        self._ticket = ticket
        self._waiting: Message | None = None
        self._last_s = 0.0
        self._tokens = 0
        self._gaps = metrics.GAP_S.labels(admitted.model.name)
        metrics.IN_FLIGHT.labels(admitted.model.name).inc()

    async def start(self) -> None:
        """Waits for the first message, which `read` then returns. Errors before it reach the client as a status."""
        message = await self._receive()
        if message is None:
            raise Unavailable("the worker ended the answer before its first message; send the request again")
        self._waiting = message
        name, pick = self.admitted.model.name, self.admitted.pick
        metrics.FIRST_TOKEN_S.labels(name).observe(self._last_s - self.admitted.arrived_s)
        served_by = await self._call.served_by()
        self._ticket.answered(served_by or None)
        self.worker = self._ticket.worker or ""
        if pick.endpoints and served_by and served_by != pick.endpoints[0]:
            metrics.REPICKED.labels(name).inc()
        if message.HasField("usage"):
            self.num_prompt_tokens = message.usage.prompt_tokens
            self.num_cached_tokens = message.usage.cached_tokens
            metrics.CACHED_TOKENS.labels(name).inc(self.num_cached_tokens)
        trace.get_current_span().set_attributes(
            {"shoal.worker": self.worker, "shoal.cached_tokens": self.num_cached_tokens}
        )

    async def read(self) -> Message | None:
        """The worker's next message as a public one, tokens not yet turned into text; None after the last.

        Raises what ended the call; Unavailable when it ended in the middle.
        """
        message, self._waiting = self._waiting, None
        if message is not None:
            return message
        before_s = self._last_s
        message = await self._receive()
        if message is not None:
            self._gaps.observe(self._last_s - before_s)
        return message

    def cancel(self) -> None:
        """Stops the worker; a pending or later `read` raises Cancelled."""
        self._call.cancel()

    @property
    def num_tokens(self) -> int:
        """Tokens received over all completions."""
        return self._tokens

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._call.cancel()
        self._ticket.close()
        name = self.admitted.model.name
        metrics.IN_FLIGHT.labels(name).dec()
        metrics.COMPLETION_TOKENS.labels(name).inc(self._tokens)
        count_request(name, error)

    async def _receive(self) -> Message | None:
        raw = await self._call.read()
        if raw is None:
            if not all(completion.finished for completion in self.completions):
                raise Unavailable("the worker ended the answer in the middle; send the request again")
            return None
        self._last_s = time.perf_counter()
        self.raw = raw
        message = Message.FromString(raw)
        self._account(message)
        return message

    def _account(self, message: Message) -> None:
        index, num_tokens = message.choice, len(message.token_ids)
        if index >= len(self.completions):
            raise Internal(f"the worker answered for completion {index} of {len(self.completions)}")
        completion = self.completions[index]
        if num_tokens and (message.first_token_index != completion.num_tokens or completion.finished):
            raise Internal(
                f"the worker sent token {message.first_token_index} of completion {index} where token "
                f"{completion.num_tokens} was due"
            )
        completion.num_tokens += num_tokens
        self._tokens += num_tokens
        if message.finish_reason != generation_pb2.FINISH_REASON_UNSPECIFIED:
            completion.finished = True


def count_request(model: str, error: BaseException | None) -> None:
    """Counts a finished request by how it ended; anything that is no domain error is a cancel or a fault of ours."""
    if error is None:
        code = "OK"
    elif isinstance(error, ShoalError):
        code = error.code.name
    elif isinstance(error, Exception):
        code = Internal.code.name
    else:
        code = Cancelled.code.name
    metrics.REQUESTS.labels(model, code).inc()
