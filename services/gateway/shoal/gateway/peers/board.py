"""What this gateway tells the others: its own share of every worker's load, and the prompts that it just sent out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from shoal.api.peer.v1 import peer_pb2
from shoal.blocks import KEY_BYTES, KeyChain
from shoal.gateway import metrics
from shoal.gateway.routing.load import Load, LoadTracker

GATHER_S: Final = 0.005
"""Pause after a message in which changes are gathered for the next one; the first change after a pause goes at once. So
there are at most 200 messages a second to each gateway, however many requests there are."""
HEARTBEAT_S: Final = 1.0
MAX_FRAMES: Final = 64
"""Messages kept for followers that are slow: a third of a second at least. Who is further behind gets everything."""
MAX_KEYS: Final = 1024
"""Keys told of one pick: 16k tokens in blocks of 16. A longer new prompt is expected to be cached up to there."""
MAX_EXPECTED_BYTES: Final = 1 << 20
"""Keys in one message. Picks beyond are not told; their load is."""


class LoadBoard:
    """Followers hold only a number, so a slow one costs nothing. Belongs to one event loop.

    Loads are told as they are, not as they change: what is gathered, or told twice, comes out the same.
    """

    def __init__(
        self, epoch: int, loads: LoadTracker, *, gather_s: float = GATHER_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        """`epoch` is not 0 and differs between any two gateways' processes. Takes over `loads.on_change`."""
        self.epoch = epoch
        self._loads = loads
        self._gather_s = gather_s
        self._heartbeat_s = heartbeat_s
        self._changed: set[str] = set()
        self._expected: list[peer_pb2.ExpectedPrefix] = []
        self._expected_bytes = 0
        self._frames: deque[bytes] = deque(maxlen=MAX_FRAMES)
        self._last_seq = 0
        self.num_followers = 0
        """While there are none, nothing is published."""
        self._due = asyncio.Event()
        self._published = asyncio.Event()
        loads.on_change = self._note

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
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._due.wait()
            except TimeoutError:
                pass
            self.publish()
            await asyncio.sleep(self._gather_s)

    def publish(self) -> None:
        """Makes one message of all that happened since the last one, for whoever follows."""
        self._due.clear()
        if self.num_followers:
            self._last_seq += 1
            message = peer_pb2.FollowLoadsResponse(
                epoch=self.epoch,
                seq=self._last_seq,
                loads=[_message(worker, self._loads.own.get(worker, _NONE)) for worker in self._changed],
                expected=self._expected,
            )
            self._frames.append(message.SerializeToString())
            self._published.set()
            self._published = asyncio.Event()
        self._changed.clear()
        self._expected, self._expected_bytes = [], 0

    def take(self, next_seq: int) -> tuple[bytes | None, int]:
        """A follower's next message, None when it has them all, and the number to ask with then. Asks with 0 at first."""
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

    def _note(self, worker: str) -> None:
        if self.num_followers:
            self._changed.add(worker)
            self._due.set()

    def _snapshot(self) -> bytes:
        # It may know more than the last message: what changed since then is told again, and comes out the same.
        loads = [_message(worker, load) for worker, load in self._loads.own.items()]
        return peer_pb2.FollowLoadsResponse(
            epoch=self.epoch, seq=self._last_seq, snapshot=True, loads=loads
        ).SerializeToString()


_NONE: Final = Load()
assert MAX_KEYS * KEY_BYTES <= MAX_EXPECTED_BYTES


def _message(worker: str, load: Load) -> peer_pb2.WorkerLoad:
    return peer_pb2.WorkerLoad(
        worker=worker,
        num_requests=load.num_requests,
        num_waiting_tokens=load.num_waiting_tokens,
        num_prompt_tokens=load.num_prompt_tokens,
    )
