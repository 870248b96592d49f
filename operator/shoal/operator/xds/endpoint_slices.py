"""Kubernetes' EndpointSlices as Envoy's endpoints."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final

from shoal.operator.envoy import Endpoint

_ADDRESS_TYPES: Final = ("IPv4", "IPv6")


def ready_endpoints(slices: Iterable[Mapping[str, Any]], port_name: str) -> tuple[Endpoint, ...]:
    """Who takes new calls at the port of that name, of the `discovery.k8s.io/v1` objects of one Service; sorted, each
    once although it may be in two slices while Kubernetes moves it.

    A pod that terminates is not among them: its streams go on, and Envoy drains it. Slices of names (`FQDN`) and
    addresses that are none are left out, since Envoy would reject the whole update for one of them.
    """
    found = set()
    for each in slices:
        if each.get("addressType") not in _ADDRESS_TYPES:
            continue
        ports = [port["port"] for port in each.get("ports") or () if port.get("name") == port_name and port.get("port")]
        for endpoint in each.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            # Unknown readiness counts as ready, says the API.
            if conditions.get("ready") is False or conditions.get("terminating"):
                continue
            found |= {Endpoint(address, port) for address in _addresses(endpoint) for port in ports}
    return tuple(sorted(found))


def _addresses(endpoint: Mapping[str, Any]) -> list[str]:
    """The first: all of one endpoint lead to the same pod."""
    for address in endpoint.get("addresses") or ():
        try:
            return [str(ipaddress.ip_address(address))]
        except ValueError:
            continue
    return []
