"""One request under way: its messages in order, wherever they come from, and what is counted about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from opentelemetry import trace

from shoal.api.generation.v1 import generation_pb2
from shoal.gateway import metrics
from shoal.gateway.admission.permit import Permit
from shoal.gateway.attempt import Attempt
from shoal.gateway.journal import Completion, Message
from shoal.gateway.leg import Leg
from shoal.gateway.stream import Stream
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import Cancelled, Internal, ShoalError, Unavailable

_GOES_ON: Final = generation_pb2.FINISH_REASON_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Admitted:
    """What was decided before the worker was called."""

    request_id: str
    model: ServedModel
    arrived_s: float
    """`time.perf_counter()` at arrival."""
    permit: Permit | None = None
    """Its place at the workers, with flow control: closed when nothing more is expected from them."""


class Generation:
    """Use as a context manager around all reading: leaving it ends what is under way and settles loads and metrics.

    A completion's tokens come exactly once and in order, whichever workers they come from; otherwise `read` raises.
    """

    __slots__ = ("_gaps", "_last_s", "_legs", "_num_ended", "_stream", "_waiting", "admitted", "raw", "worker")

    def __init__(self, admitted: Admitted, stream: Stream, attempt: Attempt | None) -> None:
        """`attempt` is at all completions; None for a stream that goes on with what a client has."""
        self.admitted = admitted
        self.raw = b""
        """The bytes of the message that `read` returned last."""
        self.worker = ""
        """ip:port of the worker that answered first, when known; set by `start`."""
        self._stream = stream
        completions = stream.journal.completions
        self._legs = (
            [Leg(stream, range(len(completions)), attempt)]
            if attempt is not None
            else [Leg(stream, [choice], None) for choice, had in enumerate(completions) if not had.finished]
        )
        self._waiting: Message | None = None
        self._last_s = 0.0
        self._num_ended = sum(completion.finished for completion in completions)
        """Completions whose last message was handed out."""
        self._gaps = metrics.GAP_S.labels(admitted.model.name)
        metrics.IN_FLIGHT.labels(admitted.model.name).inc()
        stream.gate.num_streams += 1

    @property
    def completions(self) -> Sequence[Completion]:
        """The request's n completions, as far as they have come."""
        return self._stream.journal.completions

    @property
    def num_prompt_tokens(self) -> int:
        """As the worker counts them, once it has."""
        return self._stream.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that the first worker had in its cache."""
        return self._stream.num_cached_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens received over all completions, without those that the client had before."""
        return self._stream.journal.num_tokens - self._stream.journal.num_restored_tokens

    @property
    def seed(self) -> int:
        """What its random numbers come from."""
        return self._stream.errand.message.sampling.seed

    async def start(self) -> None:
        """Waits for the first message, which `read` then returns. Errors before it reach the client as a status."""
        message = await self._receive()
        if message is None:
            raise Unavailable("the worker ended the answer before its first message; send the request again")
        self._waiting = message
        name = self.admitted.model.name
        self._stream.record.first_message_s = self._last_s
        metrics.FIRST_TOKEN_S.labels(name).observe(self._last_s - self.admitted.arrived_s)
        if (attempt := self._legs[-1].attempt) is not None:  # the leg that was served last
            self.worker = attempt.worker
        if self._stream.journal.num_restored_tokens:
            metrics.RESUMED.labels(name).inc()
        else:
            metrics.CACHED_TOKENS.labels(name).inc(self.num_cached_tokens)
        trace.get_current_span().set_attributes(
            {"shoal.worker": self.worker, "shoal.cached_tokens": self.num_cached_tokens}
        )

    async def read(self) -> Message | None:
        """The worker's next message as a public one, tokens not yet turned into text; None after the last.

        Raises what ended the request, when no other worker could go on with it.
        """
        message, self._waiting = self._waiting, None
        if message is not None:
            return message
        before_s = self._last_s
        message = await self._receive()
        if message is not None:
            self._gaps.observe(self._last_s - before_s)
        return message

    def abandon(self, choice: int) -> None:
        """Nobody wants the rest of this completion: it is not taken to another worker."""
        self.completions[choice].abandoned = True

    def cancel(self) -> None:
        """Stops the workers; a pending or later `read` raises Cancelled."""
        for leg in self._legs:
            leg.cancel()
        self._close_permit()

    def withdraw(self) -> None:
        """In place of an exit, for a request that never began and is not over: another attempt will be made at it.

        The permit stays open.
        """
        for leg in self._legs:
            leg.close()
        self._stream.gate.num_streams -= 1
        metrics.IN_FLIGHT.labels(self.admitted.model.name).dec()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.withdraw()
        self._close_permit()
        name = self.admitted.model.name
        metrics.COMPLETION_TOKENS.labels(name).inc(self.num_tokens)
        self._stream.record.end(count_request(name, error), self.num_tokens)

    async def _receive(self) -> Message | None:
        while self._legs:
            leg = self._legs[0] if len(self._legs) == 1 else await self._next_leg()
            pending, leg.pending = leg.pending, None
            message = await (leg.read() if pending is None else pending)
            if message is not None:
                self._last_s = time.perf_counter()
                self.raw = leg.raw
                if message.finish_reason != _GOES_ON:
                    self._num_ended += 1
                    if self._num_ended == len(self.completions):
                        self._close_permit()
                if self._stream.has_moved and message.HasField("usage"):
                    self._recount(message)
                return message
            self._legs.remove(leg)
            self._legs += leg.remains()
        return None

    def _recount(self, message: Message) -> None:
        """Each attempt tells its own counts; the client has heard the first, and hears the last of all completions."""
        message.ClearField("usage")
        if self._num_ended == len(self.completions):
            self._stream.count_usage(message)
        self.raw = message.SerializeToString()

    def _close_permit(self) -> None:
        if (permit := self.admitted.permit) is not None:
            permit.close(num_cached_tokens=self.num_cached_tokens, num_output_tokens=self.num_tokens)

    async def _next_leg(self) -> Leg:
        """A leg whose next message is here. Reads all of them; the one that was served goes to the end of the line."""
        for leg in self._legs:
            if leg.pending is None:
                leg.pending = asyncio.create_task(leg.read())
                leg.pending.add_done_callback(_retrieve)
        await asyncio.wait([leg.pending for leg in self._legs if leg.pending], return_when=asyncio.FIRST_COMPLETED)
        leg = next(leg for leg in self._legs if leg.pending is not None and leg.pending.done())
        self._legs.remove(leg)
        self._legs.append(leg)
        return leg


def count_request(model: str, error: BaseException | None) -> str:
    """Counts a finished request by how it ended, and says how: a gRPC code's name.

    Anything that is no domain error is a cancel or a fault of ours.
    """
    if error is None:
        code = "OK"
    elif isinstance(error, ShoalError):
        code = error.code.name
    elif isinstance(error, Exception):
        code = Internal.code.name
    else:
        code = Cancelled.code.name
    metrics.REQUESTS.labels(model, code).inc()
    return code


def _retrieve(task: asyncio.Task[Message | None]) -> None:
    """Whoever awaits it gets the error; if the request ends before that, nobody needs it."""
    if not task.cancelled():
        task.exception()
