"""Several gateways in front of the same workers, each with an index and loads of its own, as in a real mesh.

Requests go to them in turn. What they tell each other travels as it does between processes: through the gateway's own
`LoadBoard` and `PeerFeed`, gathered for a few milliseconds and then some time on its way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

from shoal.api.peer.v1 import peer_pb2
from shoal.blocks import KeyChain
from shoal.gateway.peers.board import GATHER_S, LoadBoard
from shoal.gateway.peers.shares import PeerFeed
from shoal.gateway.routing.load import LoadTracker, Ticket
from shoal.gateway.routing.policy import Policy, Ranking
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.routing.rebalance import RebalanceConfig, Rebalancer
from shoal.gateway.routing.router import Pick, PickRequest, Router

Clock = Callable[[], float]
Schedule = Callable[[float, Callable[[], None]], None]
"""(time, what happens then)."""


class VirtualGateway:
    """One gateway's process."""

    def __init__(self, number: int, policy: Policy, max_index_keys: int, clock: Clock) -> None:
        self.number = number
        self.index = PrefixIndex(max_index_keys, clock=clock)
        self.loads = LoadTracker(clock=clock)
        self.rebalancer = Rebalancer(self.loads, RebalanceConfig())
        self._router = Router(self.index, self.loads, policy)
        self._board = LoadBoard(number + 1, self.loads)
        self._feeds: dict[VirtualGateway, PeerFeed] = {}
        self._next_seqs: dict[VirtualGateway, int] = {}
        self._last_publish_s = -GATHER_S
        self._next_publish_s = math.inf

    def follow(self, others: Sequence[VirtualGateway]) -> None:
        """From here on it hears of `others`."""
        for other in others:
            other._board.num_followers += 1
            self._feeds[other] = PeerFeed(self.loads, self.index)
            self.hear(other)

    def pick(self, request: PickRequest) -> tuple[Pick, Ticket]:
        """As the gateway's dispatcher does."""
        chain = KeyChain.of(request.block_keys)
        pick = self._router.pick(dataclasses.replace(request, block_keys=chain))
        endpoint, num_cached = pick.endpoints[0] if pick.endpoints else None, pick.predicted_cached_tokens
        if endpoint is not None:
            self._board.expect(endpoint, chain, num_cached // request.block_size)
        num_uncached = request.prompt_tokens - num_cached
        return pick, self.loads.admit(endpoint, num_uncached, num_prompt_tokens=request.prompt_tokens)

    def rank(self, request: PickRequest) -> Ranking:
        """What a pick would find."""
        return self._router.rank(request)

    def hear(self, other: VirtualGateway) -> None:
        """Takes in all that another one has published."""
        while True:
            data, self._next_seqs[other] = other._board.take(self._next_seqs.get(other, 0))
            if data is None:
                return
            self._feeds[other].apply(peer_pb2.FollowLoadsResponse.FromString(data))

    def publish_when_due(self, now_s: float, at: Schedule, then: Callable[[], None]) -> None:
        """Plans the next message if something changed, and no earlier than the board would; `then` comes after it."""
        pause_s = self._board.due_within_s
        if pause_s is None:
            return
        publish_s = max(now_s + pause_s, self._last_publish_s + GATHER_S)
        if publish_s >= self._next_publish_s:
            return
        self._next_publish_s = publish_s

        def publish() -> None:
            if self._next_publish_s == publish_s:  # else something more urgent came before
                self._last_publish_s, self._next_publish_s = publish_s, math.inf
                self._board.publish()
                then()

        at(publish_s, publish)


class VirtualGateways:
    """All of them. One alone tells nobody anything."""

    def __init__(
        self,
        num: int,
        policy: Policy,
        max_index_keys: int,
        clock: Clock,
        at: Schedule,
        *,
        peer_delay_s: float | None,
    ) -> None:
        """peer_delay_s: from a message's making to its arrival; None: the gateways tell each other nothing."""
        self._clock = clock
        self._at = at
        self._delay_s = peer_delay_s
        self._all = [VirtualGateway(number, policy, max_index_keys, clock) for number in range(num)]
        if peer_delay_s is not None:
            for gateway in self._all:
                gateway.follow([other for other in self._all if other is not gateway])

    @property
    def indexes(self) -> list[PrefixIndex]:
        """Each gateway follows the events itself."""
        return [gateway.index for gateway in self._all]

    def __iter__(self) -> Iterator[VirtualGateway]:
        return iter(self._all)

    def of(self, number: int) -> VirtualGateway:
        """The one that has request `number`."""
        return self._all[number % len(self._all)]

    def pick(self, number: int, request: PickRequest) -> tuple[Pick, Ticket]:
        """The decision on request `number`, and its share of the chosen worker's load."""
        return self.of(number).pick(request)

    def tell(self) -> None:
        """Call after anything that may have changed a load."""
        if self._delay_s is None:
            return
        for gateway in self._all:
            gateway.publish_when_due(self._clock(), self._at, functools.partial(self._send, gateway, self._delay_s))

    def _send(self, sender: VirtualGateway, delay_s: float) -> None:
        self._at(self._clock() + delay_s, functools.partial(self._hear, sender))

    def _hear(self, sender: VirtualGateway) -> None:
        for gateway in self._all:
            if gateway is not sender:
                gateway.hear(sender)
