"""Which pods Envoy is told of."""

from __future__ import annotations

from typing import Any

from shoal.operator.envoy import Endpoint
from shoal.operator.xds.endpoint_slices import ready_endpoints


def endpoint(address: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions}


def part(*endpoints: dict[str, Any], kind: str = "IPv4", **ports: int) -> dict[str, Any]:
    named = [{"name": name, "port": port, "protocol": "TCP"} for name, port in ports.items()]
    return {"addressType": kind, "endpoints": list(endpoints), "ports": named}


def test_ready_pods_of_all_slices_each_once() -> None:
    slices = [
        part(endpoint("10.0.0.2", ready=True), endpoint("10.0.0.1"), grpc=50051, metrics=9000),
        part(endpoint("10.0.0.2", ready=True), grpc=50051),
        part(endpoint("fd00:0::1", ready=True), kind="IPv6", grpc=50052),
    ]
    expected = (Endpoint("10.0.0.1", 50051), Endpoint("10.0.0.2", 50051), Endpoint("fd00::1", 50052))
    assert ready_endpoints(slices, "grpc") == expected
    assert ready_endpoints(slices, "http") == ()


def test_who_is_not_ready_or_goes_is_left_out() -> None:
    pods = (
        endpoint("10.0.0.1", ready=False, serving=True, terminating=True),
        endpoint("10.0.0.2", ready=False),
        endpoint("10.0.0.3", ready=True, terminating=True),
    )
    assert ready_endpoints([part(*pods, grpc=1)], "grpc") == ()


def test_what_envoy_would_reject_is_left_out() -> None:
    slices = [
        part(endpoint("host.example"), kind="FQDN", grpc=1),
        part(endpoint("not an address"), {"addresses": None}, {}, grpc=1),
        {"addressType": "IPv4", "endpoints": None, "ports": None},
        {"addressType": "IPv4", "endpoints": [endpoint("10.0.0.1")], "ports": [{"name": "grpc", "port": None}]},
    ]
    assert ready_endpoints(slices, "grpc") == ()
