"""The operator's API client, failing as told."""

from __future__ import annotations

from typing import Any, Final

from shoal.operator.planner.kubernetes import Manifest
from shoal.operator.reconcile.api_client import ApiClient, ApiError

NUM_WRITES: Final = 20
"""Of the first reconcile of a minimal service: 17 objects, the status and two Events."""
LOST: Final = ApiError(0, "Unreachable", "the connection broke")


class Failing(ApiClient):
    """Fails as told at writes from the `start`th on, `times` times. Counts writes from 1."""

    def __init__(self, configuration: Any, error: ApiError, start: int, times: int, *, after: bool = False) -> None:
        super().__init__(configuration)
        self.error = error
        self.writes = 0
        self.failures = 0
        self._span = range(start, start + times)
        self._after = after

    async def request(self, method: str, *arguments: Any, **fields: Any) -> Manifest:
        if method == "GET":
            return await super().request(method, *arguments, **fields)
        self.writes += 1
        fails = self.writes in self._span
        if fails and not self._after:
            self.failures += 1
            raise self.error
        answer = await super().request(method, *arguments, **fields)
        if fails:  # it was done, but nobody hears of it
            self.failures += 1
            raise self.error
        return answer
