"""What the other gateways told, put together. No I/O."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Final

from shoal.api.peer.v1 import peer_pb2
from shoal.blocks import KEY_BYTES, KeyChain
from shoal.gateway.routing.load import Load, LoadTracker
from shoal.gateway.routing.prefix_index import PrefixIndex

_NONE: Final = Load()


class LoadShares:
    """Each gateway's share of each worker's load. `LoadTracker` gets their sums, and so does every pick."""

    def __init__(self, loads: LoadTracker) -> None:
        self._loads = loads
        self._by_worker: dict[str, dict[str, Load]] = {}

    def set(self, gateway: str, worker: str, load: Load) -> None:
        """What `gateway` has under way at `worker`."""
        shares = self._by_worker.setdefault(worker, {})
        if load == _NONE:
            shares.pop(gateway, None)
        else:
            shares[gateway] = load
        self._loads.set_elsewhere(worker, reduce(add, shares.values(), _NONE))
        if not shares:
            del self._by_worker[worker]

    def drop(self, gateway: str) -> None:
        """Nothing that `gateway` told counts any longer."""
        for worker in [worker for worker, shares in self._by_worker.items() if gateway in shares]:
            self.set(gateway, worker, _NONE)


class PeerGap(Exception):
    """A message does not follow the one before."""


class PeerFeed:
    """One followed gateway's messages, in order. Its share counts only while this is in step with it."""

    def __init__(self, gateway: str, shares: LoadShares, index: PrefixIndex) -> None:
        self._gateway = gateway
        self._shares = shares
        self._index = index
        self._epoch = 0
        self._next_seq = 0

    @property
    def epoch(self) -> int:
        """Which process is followed; 0 while none is."""
        return self._epoch

    def forget(self) -> None:
        """The gateway is gone, or out of step: its share is nothing until its next snapshot."""
        self._epoch = self._next_seq = 0
        self._shares.drop(self._gateway)

    def apply(self, message: peer_pb2.FollowLoadsResponse) -> None:
        """Raises PeerGap when `message` does not follow; the gateway is forgotten then."""
        if message.snapshot:
            self.forget()
            self._epoch = message.epoch
        elif not self._epoch or message.epoch != self._epoch or message.seq != self._next_seq:
            expected = f"message {self._next_seq} of {self._epoch}"
            self.forget()
            raise PeerGap(f"expected {expected}, got {message.seq} of {message.epoch}")
        self._next_seq = message.seq + 1
        for told in message.loads:
            load = Load(told.num_requests, told.num_waiting_tokens, told.num_prompt_tokens)
            self._shares.set(self._gateway, told.worker, load)
        for prefix in message.expected:
            if len(prefix.keys) % KEY_BYTES == 0:
                self._index.expect(prefix.worker, KeyChain.unpacked(prefix.keys))
