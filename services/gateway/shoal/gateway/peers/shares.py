"""What another gateway told, in this gateway's own loads and index. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from shoal.api.peer.v1 import peer_pb2
from shoal.blocks import KEY_BYTES, KeyChain
from shoal.gateway.routing.load import LoadTracker, Ticket
from shoal.gateway.routing.prefix_index import PrefixIndex

OnService = Callable[[str, str, float, float], object]
"""(model, tenant, tokens that it got at the other gateway, change of what is predicted of all that it got there)."""


class PeerGap(Exception):
    """A message does not follow the one before."""


class PeerFeed:
    """One followed gateway's messages, in order. Its requests count only while this is in step with it.

    They are tickets as this gateway's own are, so what waits at a worker, and how long its prompts take, is known from
    all gateways' requests alike.
    """

    def __init__(self, loads: LoadTracker, index: PrefixIndex, on_service: OnService = lambda *_: None) -> None:
        self._loads = loads
        self._index = index
        self._on_service = on_service
        self._served: dict[tuple[str, str], tuple[float, float]] = {}
        """By model and tenant: tokens, and the predicted part, as told last by the process `_served_epoch`."""
        self._served_epoch = 0
        self._tickets: dict[int, Ticket] = {}
        self._epoch = 0
        self._next_seq = 0

    def forget(self) -> None:
        """The gateway is gone, or out of step: it has nothing under way until its next snapshot."""
        self._epoch = self._next_seq = 0
        for ticket in self._tickets.values():
            ticket.close()
        self._tickets.clear()
        for key, (tokens, predicted) in self._served.items():
            if predicted:
                self._served[key] = (tokens - predicted, 0.0)
                self._on_service(*key, -predicted, -predicted)

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
        for share in message.requests:
            self._take(share)
        if message.snapshot:
            self._loads.turn = max(self._loads.turn, message.turn)
        self._take_services(message)
        for prefix in message.expected:
            if len(prefix.keys) % KEY_BYTES == 0:
                self._index.expect(prefix.worker, KeyChain.unpacked(prefix.keys))

    def _take_services(self, message: peer_pb2.FollowLoadsResponse) -> None:
        """What was over before this gateway knew of the other one is past."""
        is_new = message.epoch != self._served_epoch
        if is_new:
            self._served, self._served_epoch = {}, message.epoch
        for service in message.services:
            key = (service.model, service.tenant)
            old, old_predicted = self._served.get(key, (0.0, 0.0))
            tokens, predicted = service.num_tokens, service.num_predicted_tokens
            self._served[key] = (tokens, predicted)
            if is_new:
                old, old_predicted = tokens - predicted, 0.0
            if tokens != old or predicted != old_predicted:
                self._on_service(*key, tokens - old, predicted - old_predicted)

    def _take(self, share: peer_pb2.RequestShare) -> None:
        ticket = self._tickets.get(share.number)
        if share.state == peer_pb2.REQUEST_STATE_OVER:
            if ticket is not None:
                del self._tickets[share.number]
                ticket.close(share.num_output_tokens)
        elif ticket is None:
            self._tickets[share.number] = self._loads.admit_elsewhere(
                share.worker,
                share.num_uncached_tokens,
                share.num_prompt_tokens,
                is_waiting=share.state == peer_pb2.REQUEST_STATE_WAITING,
            )
        elif share.state == peer_pb2.REQUEST_STATE_RUNNING and (
            not ticket.is_answered or share.worker != ticket.worker
        ):
            ticket.answered(share.worker)
