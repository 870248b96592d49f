"""Two gateways behind one edge: each explains any request, and nobody outside hears what they tell each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from shoal.api.peer.v1 import peer_pb2, peer_pb2_grpc
from shoal.client import Client, NotFound
from support.eventually import wait_until
from support.shoal_up import Up, manifest, shoal_up


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    document = manifest(workers={"replicas": 2, "device": "simulated"}, gateway={"replicas": 2})
    with shoal_up(tmp_path_factory.mktemp("gateways"), document) as up:
        yield up


def test_any_gateway_explains_any_request(mesh: Up) -> None:
    with Client(mesh.endpoint) as client:
        ids = [client.generate("The sea is", max_tokens=2).request_id for _ in range(6)]
        # Gateways take turns, and each learns of the other by itself: two questions in a row reach both.
        questions = [each for each in ids for _ in range(2)]
        wait_until(lambda: all(_is_known(client, each) for each in questions), "gateways know each other", 30)
        found = [client.explain(request_id) for request_id in questions]
    assert [explanation.code for [explanation] in found] == ["OK"] * 12
    assert len({explanation.gateway for [explanation] in found}) == 2, "both served"
    assert all(explanation.attempts[0].num_candidates == 2 for [explanation] in found)


def test_the_edge_does_not_lead_to_what_gateways_tell_each_other(mesh: Up) -> None:
    with grpc.insecure_channel(mesh.endpoint) as channel:
        stub: Any = peer_pb2_grpc.PeerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as finding:
            stub.FindExplanations(peer_pb2.FindExplanationsRequest(request_id="x"), timeout=10)
        with pytest.raises(grpc.RpcError) as following:
            next(stub.FollowLoads(peer_pb2.FollowLoadsRequest(), timeout=10))
    codes = [caught.value.code() for caught in (finding, following)]
    assert codes == [grpc.StatusCode.UNIMPLEMENTED] * 2


def _is_known(client: Client, request_id: str) -> bool:
    try:
        return bool(client.explain(request_id))
    except NotFound:
        return False
