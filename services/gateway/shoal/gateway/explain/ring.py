"""The last requests of a gateway, by tenant and id."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from shoal.gateway.explain.records import RequestRecord


class RecentRequests:
    """Remembers `capacity` requests, oldest out first. Belongs to the event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._order: deque[RequestRecord] = deque()
        self._by_name: dict[tuple[str, str], deque[RequestRecord]] = {}

    def __len__(self) -> int:
        return len(self._order)

    @property
    def oldest_unix_s(self) -> float | None:
        """When the oldest one arrived."""
        return self._order[0].arrived_unix_s if self._order else None

    def begin(self, tenant: str, request_id: str) -> RequestRecord:
        """A record for a request that just arrived. The caller fills it in."""
        record = RequestRecord(tenant, request_id)
        if self._capacity:
            if len(self._order) == self._capacity:
                self._forget(self._order.popleft())
            self._order.append(record)
            self._by_name.setdefault((tenant, request_id), deque()).append(record)
        return record

    def find(self, tenant: str, request_id: str) -> Sequence[RequestRecord]:
        """All that are remembered under this name, oldest first: ids need not be unique."""
        return tuple(self._by_name.get((tenant, request_id), ()))

    def _forget(self, record: RequestRecord) -> None:
        name = record.tenant, record.request_id
        same = self._by_name[name]
        same.popleft()  # of equal names the oldest goes first
        if not same:
            del self._by_name[name]
