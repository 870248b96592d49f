"""Spans of calls over the Unix socket: in the trace of the request that they are made for, where they say it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final

from google.protobuf.message import Message
from opentelemetry import propagate, trace

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.telemetry import is_tracing

_tracer: Final = trace.get_tracer("shoal.kv_store")


def call_span(method: str, request: Message) -> AbstractContextManager[object]:
    """A span for as long as the context lasts, and the parent of all in it. Without an exporter: nothing, in 0.2 us."""
    if not is_tracing():
        return nullcontext()
    attributes: dict[str, str | int] = {"rpc.system": "shoal.kv_client", "rpc.method": method}
    carrier = {}
    if isinstance(request, (pb.LookupRequest, pb.AcquireRequest, pb.PrefetchRequest)):
        carrier["traceparent"] = request.origin.traceparent
        if request.origin.request_id:
            attributes["shoal.request_id"] = request.origin.request_id
    keys = getattr(request, "keys", b"")
    if keys:
        attributes["shoal.kv.num_keys"] = len(keys) // 16
    return _tracer.start_as_current_span(
        f"shoal.kv_store.{method}",
        context=propagate.extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
    )
