"""Plans and EndpointSlices become what Envoys are told, in whatever order they come."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment

from shoal.operator.envoy import Endpoint, EnvoyOptions
from shoal.operator.follower.following import endpoints_of
from shoal.operator.reconcile.publishing import Backend, Publisher
from shoal.operator.xds import Kind, SnapshotStore

MESH = "default/chat"
SOMEWHERE = Endpoint("127.0.0.1", 1)
OPTIONS = EnvoyOptions(
    node_id="x",
    node_cluster=MESH,
    run_dir="/run",
    admin_socket="/run/admin",
    edge=SOMEWHERE,
    mesh=SOMEWHERE,
    num_workers=2,
)
BACKENDS = {
    "worker": Backend("chat-worker", "grpc"),
    "gateway-grpc": Backend("chat-gateway", "grpc"),
    "gateway-http": Backend("chat-gateway", "http"),
    "gateway-peers": Backend("chat-gateway", "peer"),
}


def part(*addresses: str, **ports: int) -> dict[str, Any]:
    return {
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
        "ports": [{"name": name, "port": port} for name, port in ports.items()],
    }


def told(store: SnapshotStore, mesh: str = MESH) -> dict[str, list[str]]:
    snapshot = store.get(mesh)
    assert snapshot is not None
    assignments = {
        name: ClusterLoadAssignment.parse(each.body.value) for name, each in snapshot.of(Kind.ENDPOINTS).items()
    }
    return {name: list(map(str, endpoints_of(each))) for name, each in assignments.items()}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_does_not_matter(order: tuple[int, ...]) -> None:
    store = SnapshotStore()
    publisher = Publisher(store)
    steps = (
        lambda: publisher.configure("default", OPTIONS, BACKENDS),
        lambda: publisher.put_slice("default", "chat-worker", "a", part("10.0.0.1", "10.0.0.2", grpc=50051)),
        lambda: publisher.put_slice("default", "chat-gateway", "b", part("10.0.0.3", grpc=1, http=2, peer=3)),
    )
    for index in order:
        steps[index]()
    assert told(store) == {
        "worker": ["10.0.0.1:50051", "10.0.0.2:50051"],
        "gateway-grpc": ["10.0.0.3:1"],
        "gateway-http": ["10.0.0.3:2"],
        "gateway-peers": ["10.0.0.3:3"],
    }


def test_a_slice_changes_endpoints_alone() -> None:
    store = SnapshotStore()
    publisher = Publisher(store)
    publisher.configure("default", OPTIONS, BACKENDS)
    before = store.get(MESH)
    assert before is not None
    publisher.put_slice("default", "chat-worker", "a", part("10.0.0.1", grpc=50051))
    after = store.get(MESH)
    assert after is not None
    for kind in (Kind.CLUSTER, Kind.LISTENER, Kind.ROUTES):
        assert after.of(kind) is before.of(kind)
    publisher.put_slice("default", "chat-worker", "b", part("10.0.0.2", grpc=50051))
    assert told(store)["worker"] == ["10.0.0.1:50051", "10.0.0.2:50051"]
    publisher.drop_slice("default", "chat-worker", "a")
    publisher.drop_slice("default", "chat-worker", "never there")
    assert told(store)["worker"] == ["10.0.0.2:50051"]


def test_namespaces_are_apart() -> None:
    store = SnapshotStore()
    publisher = Publisher(store)
    publisher.configure("default", OPTIONS, BACKENDS)
    publisher.configure("other", replace(OPTIONS, node_cluster="other/chat"), BACKENDS)
    publisher.put_slice("other", "chat-worker", "a", part("10.0.0.1", grpc=50051))
    assert told(store)["worker"] == []
    assert told(store, "other/chat")["worker"] == ["10.0.0.1:50051"]


def test_what_a_plan_no_longer_has_behind_it_is_not_told() -> None:
    store = SnapshotStore()
    publisher = Publisher(store)
    publisher.put_slice("default", "chat-worker", "a", part("10.0.0.1", grpc=50051))
    publisher.configure("default", OPTIONS, BACKENDS)
    publisher.configure("default", replace(OPTIONS, num_workers=3), {"worker": Backend("chat-worker-b", "grpc")})
    assert told(store)["worker"] == []
    publisher.put_slice("default", "chat-worker", "a", part("10.0.0.2", grpc=50051))
    assert told(store)["worker"] == []
    publisher.remove(MESH)
    publisher.put_slice("default", "chat-worker-b", "c", part("10.0.0.2", grpc=50051))
    assert store.get(MESH) is None


def test_an_equal_plan_is_not_sent_again() -> None:
    store = SnapshotStore()
    publisher = Publisher(store)
    publisher.configure("default", OPTIONS, BACKENDS)
    before = store.get(MESH)
    publisher.configure("default", replace(OPTIONS), dict(BACKENDS))
    assert store.get(MESH) is before
