"""Logs, metrics and traces, the same way in every service."""

from shoal.telemetry.logs import setup_logs
from shoal.telemetry.metrics import serve_metrics
from shoal.telemetry.traces import is_tracing, setup_traces

__all__ = ["is_tracing", "serve_metrics", "setup_logs", "setup_traces"]
