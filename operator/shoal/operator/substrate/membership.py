"""Which endpoints Envoy may use, kept in its EDS files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from shoal.operator.envoy import Endpoint, endpoints_file
from shoal.operator.envoy.config import eds_file, render
from shoal.operator.substrate.run_dir import replace_file


class Membership:
    """Endpoints of ready processes by cluster. Envoy applies a change within milliseconds of the call.

    Removing a dead process's endpoint does more than its failing health check would: calls pinned to it fall back at
    once, and when it is back its load reports start afresh instead of after Envoy's reconnection back-off (1 to 30 s).
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._endpoints: defaultdict[str, set[Endpoint]] = defaultdict(set)

    def join(self, serves: Mapping[str, Endpoint]) -> None:
        """Adds a process's endpoints, as in `ProcessPlan.serves`."""
        for cluster, endpoint in serves.items():
            if endpoint not in self._endpoints[cluster]:
                self._endpoints[cluster].add(endpoint)
                self._write(cluster)

    def leave(self, serves: Mapping[str, Endpoint]) -> None:
        """Removes them. Running calls go on; new ones go elsewhere."""
        for cluster, endpoint in serves.items():
            if endpoint in self._endpoints[cluster]:
                self._endpoints[cluster].remove(endpoint)
                self._write(cluster)

    def _write(self, cluster: str) -> None:
        assignment = endpoints_file(cluster, self._endpoints[cluster])
        replace_file(self._run_dir, eds_file(cluster), render(assignment))
