"""What this gateway tells the others: its requests under way, and the prompts that it just sent out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Final, Protocol

from shoal.api.peer.v1 import peer_pb2
from shoal.blocks import KEY_BYTES, KeyChain
from shoal.gateway import metrics
from shoal.gateway.routing.load import LoadTracker, Ticket

GATHER_S: Final = 0.001
"""Pause after a message, in which changes are gathered for the next one. A pick goes at once after a pause, since the
other gateways' next picks depend on it: at most as many messages a second as picks, and at most a thousand."""
LAZY_S: Final = 0.02
"""How long answers and ends wait for a pick's message to travel with."""
HEARTBEAT_S: Final = 1.0
MAX_FRAMES: Final = 256
"""Messages kept for followers that are slow: a quarter of a second at least. Who is further behind gets everything."""
MAX_KEYS: Final = 1024
"""Keys told of one pick: 16k tokens in blocks of 16. A longer new prompt is expected to be cached up to there."""
MAX_EXPECTED_BYTES: Final = 1 << 20
"""Keys in one message. Picks beyond are not told; their load is."""


class Ledger(Protocol):
    """What tenants got at this gateway; see `admission.Admission`."""

    def service(self) -> Iterable[tuple[str, str, float, float]]:
        """(model, tenant, tokens since the start, how many of them are predicted) of all tenants."""
        ...

    def take_changes(self) -> Iterable[tuple[str, str, float, float]]:
        """The same of those where it changed since the last call."""
        ...


class LoadBoard:
    """Followers hold only a number, so a slow one costs nothing. Belongs to one event loop.

    Requests are told as they are, not as they change: what is gathered, or told twice, comes out the same.
    """

    def __init__(
        self, epoch: int, loads: LoadTracker, *, gather_s: float = GATHER_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        """`epoch` is not 0 and differs between any two gateways' processes. Takes over `loads.on_change`."""
        self.epoch = epoch
        self._loads = loads
        self._gather_s = gather_s
        self._heartbeat_s = heartbeat_s
        self._changed: dict[int, Ticket] = {}
        self._expected: list[peer_pb2.ExpectedPrefix] = []
        self._expected_bytes = 0
        self._frames: deque[bytes] = deque(maxlen=MAX_FRAMES)
        self._last_seq = 0
        self.ledger: Ledger | None = None
        """Set by whoever has one."""
        self.num_followers = 0
        """While there are none, nothing is published."""
        self._due = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._published = asyncio.Event()
        loads.on_change = self._note

    @property
    def due_within_s(self) -> float | None:
        """How long the next message may wait; None when there is nothing to tell."""
        if self._due.is_set():
            return 0.0
        return LAZY_S if self._changed else None

    def expect(self, worker: str, keys: KeyChain, num_known: int) -> None:
        """A prompt was sent to `worker`, which is believed to hold its first `num_known` blocks already."""
        if not self.num_followers or num_known >= len(keys):
            return
        packed = keys.packed(num_known, num_known + MAX_KEYS)
        if self._expected_bytes + len(packed) > MAX_EXPECTED_BYTES:
            metrics.PEER_EXPECTATIONS_DROPPED.inc()
            return
        self._expected.append(peer_pb2.ExpectedPrefix(worker=worker, keys=packed))
        self._expected_bytes += len(packed)
        self._due.set()

    async def run(self) -> None:
        """Publishes what changed, and heartbeats while nothing does, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._due.wait()
            self.publish()
            await asyncio.sleep(self._gather_s)

    def publish(self) -> None:
        """Makes one message of all that happened since the last one, for whoever follows."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.num_followers:
            self._last_seq += 1
            message = peer_pb2.FollowLoadsResponse(
                epoch=self.epoch,
                seq=self._last_seq,
                requests=map(_message, self._changed.values()),
                expected=self._expected,
                services=[] if self.ledger is None else map(_service, self.ledger.take_changes()),
                turn=self._loads.turn,
            )
            self._frames.append(message.SerializeToString())
            self._published.set()
            self._published = asyncio.Event()
        self._changed.clear()
        self._expected, self._expected_bytes = [], 0

    def take(self, next_seq: int) -> tuple[bytes | None, int]:
        """A follower's next message, None when it has them all, and the number to ask with then; 0 at first."""
        if next_seq <= self._last_seq - len(self._frames):
            return self._snapshot(), self._last_seq + 1
        if next_seq <= self._last_seq:
            return self._frames[next_seq - 1 - self._last_seq], next_seq + 1
        return None, next_seq

    async def follow(self) -> AsyncIterator[bytes]:
        """FollowLoadsResponses: everything, then every message to come. Never ends by itself."""
        next_seq = 0
        self.num_followers += 1
        try:
            while True:
                data, next_seq = self.take(next_seq)
                if data is None:
                    await self._published.wait()
                else:
                    yield data
        finally:
            self.num_followers -= 1

    def _note(self, ticket: Ticket) -> None:
        if self.num_followers and ticket.worker is not None:
            self._changed[ticket.number] = ticket
            if ticket.is_open and not ticket.is_answered:
                self._due.set()
            elif self._loop is not None and self._timer is None:
                self._timer = self._loop.call_later(LAZY_S, self._due.set)

    def _snapshot(self) -> bytes:
        # It may know more than the last message: what changed since then is told again, and comes out the same.
        requests = [_message(ticket) for ticket in self._loads.open.values() if ticket.worker is not None]
        return peer_pb2.FollowLoadsResponse(
            epoch=self.epoch,
            seq=self._last_seq,
            snapshot=True,
            requests=requests,
            services=[] if self.ledger is None else map(_service, self.ledger.service()),
            turn=self._loads.turn,
        ).SerializeToString()


assert MAX_KEYS * KEY_BYTES <= MAX_EXPECTED_BYTES


def _service(service: tuple[str, str, float, float]) -> peer_pb2.TenantService:
    model, tenant, num_tokens, num_predicted_tokens = service
    return peer_pb2.TenantService(
        model=model, tenant=tenant, num_tokens=num_tokens, num_predicted_tokens=num_predicted_tokens
    )


def _message(ticket: Ticket) -> peer_pb2.RequestShare:
    state = peer_pb2.REQUEST_STATE_RUNNING if ticket.is_answered else peer_pb2.REQUEST_STATE_WAITING
    return peer_pb2.RequestShare(
        number=ticket.number,
        state=state if ticket.is_open else peer_pb2.REQUEST_STATE_OVER,
        worker=ticket.worker or "",
        num_prompt_tokens=ticket.num_prompt_tokens,
        num_uncached_tokens=ticket.num_tokens,
        num_output_tokens=ticket.num_output_tokens,
    )
