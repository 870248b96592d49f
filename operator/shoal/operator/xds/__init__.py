"""The control plane of remote Envoys: aggregated discovery (ADS), by state of the world or by changes.

A `Snapshot` is everything one kind of Envoy is told; `SnapshotStore` holds one for each name of `node.cluster` and
wakes streams when it changes; `DiscoveryServer` speaks the protocol. `Publisher` makes snapshots of plans and
EndpointSlices.
"""

from shoal.operator.xds.publisher import Backend, Publisher
from shoal.operator.xds.server import DiscoveryServer
from shoal.operator.xds.snapshot import Kind, Resource, Snapshot, encode
from shoal.operator.xds.store import Rejection, SnapshotStore

__all__ = [
    "Backend",
    "DiscoveryServer",
    "Kind",
    "Publisher",
    "Rejection",
    "Resource",
    "Snapshot",
    "SnapshotStore",
    "encode",
]
