"""What another gateway told, in this gateway's own loads and index. No I/O."""

from __future__ import annotations

from shoal.api.peer.v1 import peer_pb2
from shoal.blocks import KEY_BYTES, KeyChain
from shoal.gateway.routing.load import LoadTracker, Ticket
from shoal.gateway.routing.prefix_index import PrefixIndex


class PeerGap(Exception):
    """A message does not follow the one before."""


class PeerFeed:
    """One followed gateway's messages, in order. Its requests count only while this is in step with it.

    They are tickets as this gateway's own are, so what waits at a worker, and how long its prompts take, is known from
    all gateways' requests alike.
    """

    def __init__(self, loads: LoadTracker, index: PrefixIndex) -> None:
        self._loads = loads
        self._index = index
        self._tickets: dict[int, Ticket] = {}
        self._epoch = 0
        self._next_seq = 0

    def forget(self) -> None:
        """The gateway is gone, or out of step: it has nothing under way until its next snapshot."""
        self._epoch = self._next_seq = 0
        for ticket in self._tickets.values():
            ticket.close()
        self._tickets.clear()

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
        for prefix in message.expected:
            if len(prefix.keys) % KEY_BYTES == 0:
                self._index.expect(prefix.worker, KeyChain.unpacked(prefix.keys))

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
        elif share.state == peer_pb2.REQUEST_STATE_RUNNING and not ticket.is_answered:
            ticket.answered(share.worker)
