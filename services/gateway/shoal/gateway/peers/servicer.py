"""The side that other gateways call."""

from __future__ import annotations

from typing import Any, Final

import grpc
import grpc.aio

from shoal.api.peer.v1 import peer_pb2
from shoal.gateway import metrics
from shoal.gateway.explain.explainer import Explainer
from shoal.gateway.peers.board import LoadBoard
from shoal.rpc.server import Registration

SERVICE: Final = peer_pb2.DESCRIPTOR.services_by_name["PeerService"].full_name
Context = Any


class PeerServicer:
    """Implements PeerService. FollowLoads writes bytes that are made once for all followers."""

    def __init__(self, board: LoadBoard, explainer: Explainer) -> None:
        self._board = board
        self._explainer = explainer

    def registration(self) -> Registration:
        """What `start_server` needs."""
        return Registration(_add_to_server, self, SERVICE)

    async def follow_loads(self, request: peer_pb2.FollowLoadsRequest, context: Context) -> None:
        """Ends only when the follower or this gateway goes away."""
        sent = metrics.PEER_MESSAGES.labels("sent")
        async for data in self._board.follow():
            await context.write(data)
            sent.inc()

    async def find_explanations(
        self, request: peer_pb2.FindExplanationsRequest, context: Context
    ) -> peer_pb2.FindExplanationsResponse:
        """See the proto."""
        found = self._explainer.find(request.tenant, request.request_id)
        return peer_pb2.FindExplanationsResponse(explanations=found)


def _add_to_server(servicer: Any, server: grpc.aio.Server) -> None:
    """In place of the generated function, which would serialize every message for every follower."""
    follow = grpc.unary_stream_rpc_method_handler(servicer.follow_loads, peer_pb2.FollowLoadsRequest.FromString)
    find = grpc.unary_unary_rpc_method_handler(
        servicer.find_explanations,
        peer_pb2.FindExplanationsRequest.FromString,
        peer_pb2.FindExplanationsResponse.SerializeToString,
    )
    handlers: dict[str, Any] = {"FollowLoads": follow, "FindExplanations": find}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
