"""Routes: which calls of a listener go to which cluster, and what is tried again."""

from __future__ import annotations

from typing import Any

from shoal.operator.envoy import clusters

EDGE = "edge"
EDGE_GRPC = "edge-grpc"
EDGE_HTTP = "edge-http"
MESH = "mesh"
SERVED_BY_HEADER = "x-shoal-served-by"
_TYPE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
_NOT_BUFFERED = {
    "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
    "disabled": True,
}


def edge(name: str = EDGE, *, grpc: bool = True, http: bool = True) -> dict[str, Any]:
    """From clients to the gateways: gRPC and HTTP told apart by the content type."""
    over_grpc = {
        "match": {"prefix": "/", "grpc": {}},
        "route": _route(clusters.GATEWAY_GRPC, retry_on="connect-failure,refused-stream", num_retries=2),
        # Buffering would hold back a bidirectional stream, such as reflection, for ever.
        "typed_per_filter_config": {"envoy.filters.http.buffer": _NOT_BUFFERED},
    }
    over_http = {
        "match": {"prefix": "/"},
        "route": _route(clusters.GATEWAY_HTTP, retry_on="connect-failure", num_retries=2),
    }
    routes = [
        over_grpc if grpc else _refusal({"prefix": "/", "grpc": {}}),
        over_http if http else _refusal({"prefix": "/"}),
    ]
    return _configuration(name, routes)


def _refusal(match: dict[str, Any]) -> dict[str, Any]:
    """Which gRPC clients see as UNIMPLEMENTED."""
    body = {"inline_string": "this port does not serve that protocol"}
    return {"match": match, "direct_response": {"status": 404, "body": body}}


def mesh(num_retries: int) -> dict[str, Any]:
    """From gateways to workers."""
    retry_on = "resource-exhausted,unavailable,connect-failure,refused-stream"
    route = _route(clusters.WORKER, retry_on=retry_on, num_retries=num_retries)
    route["hash_policy"] = [{"header": {"header_name": clusters.PREFIX_HASH_HEADER}}]  # weights do not ask for it
    routes = [{"match": {"prefix": "/shoal.api.worker.v1.ModelWorkerService/", "grpc": {}}, "route": route}]
    served_by = {"key": SERVED_BY_HEADER, "value": "%UPSTREAM_REMOTE_ADDRESS%"}
    header = {"header": served_by, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return _configuration(MESH, routes) | {"response_headers_to_add": [header]}


def _configuration(name: str, routes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"@type": _TYPE, "name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def _route(cluster: str, *, retry_on: str, num_retries: int) -> dict[str, Any]:
    """A route without a time limit (the default of 15 s cuts token streams), retried before the first byte only."""
    return {
        "cluster": cluster,
        "timeout": "0s",
        "retry_policy": {
            "retry_on": retry_on,
            "num_retries": num_retries,
            "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.1s"},
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
                        ".PreviousHostsPredicate"
                    },
                }
            ],
            # A retry by hash looks at the next places in the ring, of which several belong to the host just tried.
            "host_selection_retry_max_attempts": 16,
        },
    }
