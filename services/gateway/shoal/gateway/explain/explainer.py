"""Answers `Explain`: from this gateway's memory, and from the other gateways'."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

from shoal.api.gateway.v1 import explain_pb2
from shoal.gateway.explain.messages import explanation_of
from shoal.gateway.explain.ring import RecentRequests
from shoal.rpc.errors import InvalidArgument, NotFound

ASK_TIMEOUT_S: Final = 2.0
MAX_ID_LENGTH: Final = 128


class OtherGateways(Protocol):
    """Who else may know; see `peers.Peers`."""

    async def find_explanations(
        self, tenant: str, request_id: str, timeout_s: float
    ) -> tuple[list[explain_pb2.Explanation], int, int]:
        """What the others know, how many answered in time, and how many there are."""
        ...


class Explainer:
    """Shared by the public API and by the side that other gateways ask."""

    def __init__(self, recent: RecentRequests, others: OtherGateways | None = None) -> None:
        self.gateway = ""
        """This one's name, for answers."""
        self._recent = recent
        self._others = others

    def find(self, tenant: str, request_id: str) -> list[explain_pb2.Explanation]:
        """What this gateway knows."""
        return [explanation_of(record, self.gateway) for record in self._recent.find(tenant, request_id)]

    async def explain(self, tenant: str, request_id: str, timeout_s: float) -> Sequence[explain_pb2.Explanation]:
        """What all gateways know, oldest first. Raises NotFound; InvalidArgument without a usable id."""
        if not 0 < len(request_id) <= MAX_ID_LENGTH:
            raise InvalidArgument("request_id", f"{len(request_id)} characters; give 1 to {MAX_ID_LENGTH}")
        found, num_asked, num_others = self.find(tenant, request_id), 0, 0
        if self._others is not None:
            limit_s = min(timeout_s, ASK_TIMEOUT_S)
            elsewhere, num_asked, num_others = await self._others.find_explanations(tenant, request_id, limit_s)
            found += elsewhere
        if not found:
            raise NotFound(self._nothing(request_id, num_asked, num_others), field="request_id")
        return sorted(found, key=lambda explanation: explanation.arrived_unix_s)

    def _nothing(self, request_id: str, num_asked: int, num_others: int) -> str:
        oldest_s = self._recent.oldest_unix_s
        since = "" if oldest_s is None else f", the oldest from {time.time() - oldest_s:.0f} s ago"
        others = f"; {num_asked} of {num_others} other gateways know nothing of it either" if num_others else ""
        return f"no request {request_id!r} of yours is known: {len(self._recent)} are remembered here{since}{others}"
