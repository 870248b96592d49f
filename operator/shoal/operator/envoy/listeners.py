"""Listeners: EDGE for clients, MESH for the gateway. Where their routes come from is the caller's to say."""

from __future__ import annotations

from typing import Any

from shoal.operator.envoy import clusters
from shoal.operator.envoy.endpoints import Endpoint

_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_NETWORK = "type.googleapis.com/envoy.extensions.filters.network"
READY_PATH = "/readyz"
_PINS = (clusters.ENDPOINT_HEADER, "x-gateway-destination-endpoint")
_ORCA_FIELDS = ("endpoint-load-metrics", "endpoint-load-metrics-bin")

# Plain `override_host` uses a pinned host even when it fails its health checks. setUpstreamOverrideHost does not, so
# the first choice goes there; the rest stay in the header, where override_host takes one for each retry.
PIN_SCRIPT = f"""
function envoy_on_request(handle)
  local choices = handle:headers():get("{clusters.ENDPOINT_HEADER}")
  if choices == nil then return end
  local first, rest = choices:match("^%s*([^,%s]+)%s*,?%s*(.*)$")
  if first == nil then
    handle:headers():remove("{clusters.ENDPOINT_HEADER}")
    return
  end
  handle:setUpstreamOverrideHost(first, false)
  if rest ~= "" then
    handle:headers():replace("{clusters.ENDPOINT_HEADER}", rest)
  else
    handle:headers():remove("{clusters.ENDPOINT_HEADER}")
  end
end
"""


def edge(
    name: str, address: Endpoint, access_log: str | None, max_http_request_bytes: int, route_source: dict[str, Any]
) -> dict[str, Any]:
    """Where clients connect: gRPC and HTTP on one port, as far as the routes serve both."""
    too_large = {"@type": f"{_HTTP}.buffer.v3.Buffer", "max_request_bytes": max_http_request_bytes}
    filters = [
        _filter("health_check", _readiness()),
        _filter("header_mutation", {"@type": f"{_HTTP}.header_mutation.v3.HeaderMutation", "mutations": _mutations()}),
        _filter("buffer", too_large),
    ]
    manager = _connection_manager(name, route_source, filters) | {
        "local_reply_config": _json_errors(),
        "request_headers_timeout": "10s",
        "max_request_headers_kb": 64,
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
    }
    if access_log is not None:
        manager["access_log"] = [_access_log(access_log)]
    return _listener(name, address, manager)


def mesh(address: Endpoint, route_source: dict[str, Any]) -> dict[str, Any]:
    """Where the gateway finds workers."""
    script = {"@type": f"{_HTTP}.lua.v3.Lua", "default_source_code": {"inline_string": PIN_SCRIPT}}
    return _listener("mesh", address, _connection_manager("mesh", route_source, [_filter("lua", script)]))


def inline_routes(configuration: dict[str, Any]) -> dict[str, Any]:
    """A route source: part of the listener, which changes, and drains its connections, when routes do."""
    return {"route_config": {key: value for key, value in configuration.items() if key != "@type"}}


def discovered_routes(name: str) -> dict[str, Any]:
    """A route source: resources of their own, from the control plane, which change without the listener."""
    return {"rds": {"route_config_name": name, "config_source": clusters.config_source(None, "")}}


def _connection_manager(name: str, route_source: dict[str, Any], filters: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "@type": f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "AUTO",
        "generate_request_id": True,
        "preserve_external_request_id": True,
        # Five minutes by default: a request that waits in a queue longer than that would be cut.
        "stream_idle_timeout": "0s",
        "http2_protocol_options": {
            "max_concurrent_streams": 8192,
            "connection_keepalive": {"interval": "30s", "timeout": "20s"},
        },
        **route_source,
        "http_filters": [
            *filters,
            _filter("router", {"@type": f"{_HTTP}.router.v3.Router", "suppress_envoy_headers": True}),
        ],
    }


def _listener(name: str, address: Endpoint, manager: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": name,
        "address": {"socket_address": {"address": address.host, "port_value": address.port}},
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _filter(name: str, typed_config: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed_config}


def _readiness() -> dict[str, Any]:
    """Envoy itself answers `READY_PATH`: 200 while a gateway passes its checks, else 503.

    An answer of a gateway would come too early: it serves once it listens, but calls find it only after Envoy's next
    check. Until then they failed with "no healthy upstream", on a pod that was ready.
    """
    return {
        "@type": f"{_HTTP}.health_check.v3.HealthCheck",
        "pass_through_mode": False,
        "cluster_min_healthy_percentages": {clusters.GATEWAY_GRPC: {"value": 1.0}},
        "headers": [{"name": ":path", "string_match": {"exact": READY_PATH}}],
    }


def _mutations() -> dict[str, Any]:
    """Removes what only the inside may say (pins, identities, Envoy's controls) and what only it may see (load)."""
    outside: list[dict[str, Any]] = [{"remove": name} for name in _PINS if not name.startswith("x-shoal-")]
    outside += [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-shoal-", "x-envoy-")]
    inside = [{"remove": name} for name in _ORCA_FIELDS]
    return {"request_mutations": outside, "response_mutations": inside, "response_trailers_mutations": inside}


def _json_errors() -> dict[str, Any]:
    """Envoy's own refusals to HTTP clients look like the gateway's: an OpenAI error object."""
    not_grpc = {
        "name": "content-type",
        "string_match": {"prefix": "application/grpc"},
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    }
    error = {"message": "%LOCAL_REPLY_BODY%", "type": "proxy_error", "param": None, "code": "%RESPONSE_CODE%"}
    return {
        "mappers": [
            {
                "filter": {"header_filter": {"header": not_grpc}},
                "body_format_override": {"json_format": {"error": error}},
            }
        ]
    }


def _access_log(path: str) -> dict[str, Any]:
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "received_bytes": "%BYTES_RECEIVED%",
        "sent_bytes": "%BYTES_SENT%",
        "first_byte_us": "%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%",
        "duration_ms": "%DURATION%",
        "upstream": "%UPSTREAM_HOST%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"json_format": fields},
        },
    }
