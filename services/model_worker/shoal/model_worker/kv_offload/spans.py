"""Spans of questions and loads, children of the request's. Written when they have ended: threads do both for others."""

from __future__ import annotations

import time
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.trace import Span

from shoal.kv_client.origin import Origin
from shoal.telemetry import is_tracing

_tracer: Final = trace.get_tracer("shoal.model_worker.kv_offload")


def begin_span(name: str, origin: Origin, began_s: float) -> Span | None:
    """A span that began at `began_s` of time.monotonic(); None where nobody traces."""
    if not is_tracing():
        return None
    start_ns = time.time_ns() - int(1e9 * (time.monotonic() - began_s))
    context = propagate.extract({"traceparent": origin.traceparent})
    attributes = {"shoal.request_id": origin.request_id} if origin.request_id else None
    return _tracer.start_span(f"shoal.kv_offload.{name}", context=context, attributes=attributes, start_time=start_ns)


def inside(origin: Origin, span: Span | None) -> Origin:
    """On whose behalf calls are made that belong to a span."""
    if span is None:
        return origin
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    return Origin(origin.request_id, carrier.get("traceparent", ""))


def end_span(span: Span | None, **attributes: int | str) -> None:
    """The end of what `begin_span` began. attributes: under `shoal.kv.`."""
    if span is not None:
        span.set_attributes({f"shoal.kv.{name}": value for name, value in attributes.items()})
        span.end()
