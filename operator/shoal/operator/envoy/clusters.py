"""Clusters: whom Envoy sends calls to, how it tells the healthy from the others, and how it chooses among them.

`xds_dir`: the folder with the files of endpoints; None when they come from the control plane.
"""

from __future__ import annotations

from typing import Any, Literal

from shoal.operator.envoy.endpoints import Endpoint

ENDPOINT_HEADER = "x-shoal-endpoint"
"""The gateway's choice of worker, best first: `127.0.0.1:7001,127.0.0.1:7002`."""
PREFIX_HASH_HEADER = "x-shoal-prefix-hash"
"""Equal for prompts that begin alike."""
Balancing = Literal["orca", "prefix_hash"]
"""How Envoy chooses a worker when the gateway names none: by the load that workers report, or by that header."""
WORKER = "worker"
GATEWAY_GRPC = "gateway-grpc"
GATEWAY_HTTP = "gateway-http"
NAMES = (WORKER, GATEWAY_GRPC, GATEWAY_HTTP)
CONTROL_PLANE = "control-plane"
GATEWAY_PEERS = "gateway-peers"
"""How gateways find each other: a file of endpoints like the others, but none of Envoy's clusters, so that nothing at
the edge can lead there."""

_LB = "type.googleapis.com/envoy.extensions.load_balancing_policies"
# Envoy's defaults (1024 requests, 3 retries at a time) make the 1025th stream fail while workers are idle. Admission is
# the worker's: it answers RESOURCE_EXHAUSTED when its queue is full.
_UNLIMITED = 1 << 20
# A peer that vanished without closing (a stopped process) is noticed although no stream has a deadline.
_KEEPALIVE = {"interval": "30s", "timeout": "20s"}


def worker(
    xds_dir: str | None, health_interval_s: float, *, outlier_detection: bool, balancing: Balancing = "orca"
) -> dict[str, Any]:
    """The engines: the gateway's choice if it has one, else as `balancing` says."""
    cluster = _grpc_cluster(WORKER, xds_dir, health_interval_s)
    cluster["load_balancing_policy"] = _one_policy("override_host", _override_host(balancing))
    if outlier_detection:
        cluster["outlier_detection"] = {  # after five errors in a row, by default
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_time": "60s",
            "max_ejection_percent": 50,
        }
    return cluster


def gateway_grpc(xds_dir: str | None, health_interval_s: float) -> dict[str, Any]:
    """The gateways' gRPC side."""
    return _grpc_cluster(GATEWAY_GRPC, xds_dir, health_interval_s)


def gateway_http(xds_dir: str | None) -> dict[str, Any]:
    """The gateways' OpenAI side, HTTP/1.1. Its endpoints come and go with those of `gateway_grpc`."""
    return _cluster(GATEWAY_HTTP, xds_dir, {"explicit_http_config": {"http_protocol_options": {}}})


def control_plane(address: Endpoint, authority: str = "") -> dict[str, Any]:
    """The one cluster that no control plane can tell of.

    authority: PEM of certificates, one of which must have signed the control plane's for `address.host`; empty: no TLS.
    """
    socket = {"socket_address": {"address": address.host, "port_value": address.port}}
    members = [{"endpoint": {"address": socket}}]
    return {
        "name": CONTROL_PLANE,
        "type": "STRICT_DNS",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": CONTROL_PLANE, "endpoints": [{"lb_endpoints": members}]},
        "typed_extension_protocol_options": _protocol_options(
            {"explicit_http_config": {"http2_protocol_options": {"connection_keepalive": _KEEPALIVE}}}
        ),
        **({"transport_socket": _trusting(authority, address.host)} if authority else {}),
    }


def _trusting(authority: str, host: str) -> dict[str, Any]:
    """TLS with a server of that name."""
    is_address = host.replace(".", "").isdigit() or ":" in host
    names = [{"san_type": "IP_ADDRESS" if is_address else "DNS", "matcher": {"exact": host}}]
    validation = {"trusted_ca": {"inline_string": authority}, "match_typed_subject_alt_names": names}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": validation},
            **({} if is_address else {"sni": host}),
        },
    }


def config_source(xds_dir: str | None, file: str) -> dict[str, Any]:
    """A file in a watched folder: renaming a file onto it is seen within milliseconds. Without a folder: the control
    plane, over the stream that all resources share."""
    if xds_dir is None:
        return {"resource_api_version": "V3", "ads": {}}
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": f"{xds_dir}/{file}", "watched_directory": {"path": xds_dir}},
    }


def _override_host(balancing: Balancing) -> dict[str, Any]:
    """Takes hosts from the header in turn, one an attempt; after them, or without them, the fallback decides."""
    if balancing == "prefix_hash":
        fallback = _one_policy("ring_hash", _ring_hash())
    else:
        fallback = _one_policy("client_side_weighted_round_robin", _weighted_round_robin())
    return {
        "@type": f"{_LB}.override_host.v3.OverrideHost",
        "override_host_sources": [{"header": ENDPOINT_HEADER}],
        "fallback_policy": fallback,
    }


def _ring_hash() -> dict[str, Any]:
    """By `PREFIX_HASH_HEADER`, which the route hashes; calls without it go anywhere. A worker that comes or goes moves
    its own part of the prefixes and some of the others', since each then has another number of places in the ring."""
    return {"@type": f"{_LB}.ring_hash.v3.RingHash", "minimum_ring_size": 4096}


def _weighted_round_robin() -> dict[str, Any]:
    """Weight = tokens per second / utilization, reported out of band: in-band reports go stale during long streams."""
    return {
        "@type": f"{_LB}.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
        "enable_oob_load_report": True,
        "oob_reporting_period": "0.5s",
        "blackout_period": "1s",
        "weight_update_period": "0.2s",
        "weight_expiration_period": "10s",
        "metric_names_for_computing_utilization": ["named_metrics.kv_cache", "named_metrics.queue"],
        "error_utilization_penalty": 1.0,  # unset counts as 0, against its documentation
    }


def _one_policy(name: str, typed_config: dict[str, Any]) -> dict[str, Any]:
    return {
        "policies": [
            {"typed_extension_config": {"name": f"envoy.load_balancing_policies.{name}", "typed_config": typed_config}}
        ]
    }


def _grpc_cluster(name: str, xds_dir: str | None, health_interval_s: float) -> dict[str, Any]:
    http2 = {"max_concurrent_streams": 8192, "connection_keepalive": _KEEPALIVE}
    cluster = _cluster(name, xds_dir, {"explicit_http_config": {"http2_protocol_options": http2}})
    interval = f"{health_interval_s}s"
    cluster["health_checks"] = [
        {
            "timeout": "5s",
            "interval": interval,
            "no_traffic_interval": interval,  # 60 s by default: a worker would wait that long for its first call
            "unhealthy_interval": f"{health_interval_s / 2}s",
            "unhealthy_threshold": 2,
            "healthy_threshold": 1,
            "grpc_health_check": {},
        }
    ]
    # Otherwise a removed host stays, and stays pinnable, until its health check fails.
    cluster["ignore_health_on_host_removal"] = True
    return cluster


def _cluster(name: str, xds_dir: str | None, protocol: dict[str, Any]) -> dict[str, Any]:
    limits = {
        "max_connections": _UNLIMITED,
        "max_pending_requests": _UNLIMITED,
        "max_requests": _UNLIMITED,
        "max_retries": _UNLIMITED,
    }
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": config_source(xds_dir, f"eds-{name}.json")},
        "connect_timeout": "2s",
        "circuit_breakers": {"thresholds": [{"priority": "DEFAULT", **limits}]},
        "common_lb_config": {
            # Panic mode sends calls to hosts known to be dead as soon as half of them are.
            "healthy_panic_threshold": {"value": 0},
            # Envoy gathers health changes for a second by default: measured, calls to workers that had just passed
            # their checks failed with "no healthy upstream" for 0.8 to 1.2 s.
            "update_merge_window": "0s",
        },
        "typed_extension_protocol_options": _protocol_options(protocol),
    }


def _protocol_options(protocol: dict[str, Any]) -> dict[str, Any]:
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {kind: {"@type": f"type.googleapis.com/{kind}", **protocol}}
