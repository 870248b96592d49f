"""A request's trace shows what its worker asked the store, and what the store did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal.kv_client.origin import Origin
from shoal.kv_store import call_spans
from shoal.model_worker.kv_offload import spans as offload_spans
from shoal.model_worker.request import Request
from support.engine_requests import exactly, make_request
from support.eventually import wait_until
from support.kv_store_running import RunningStore, running_store
from support.offload_harness import offloading

TRACE, PARENT = "0123456789abcdef0123456789abcdef", "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunningStore]:
    with running_store(tmp_path) as running:
        yield running


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Of worker and store alike, which are one process here."""
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    for module in (call_spans, offload_spans):
        monkeypatch.setattr(module, "is_tracing", lambda: True)
        monkeypatch.setattr(module, "_tracer", provider.get_tracer("test"))
    return spans


def request(stream_id: int, traceparent: str = "") -> Request:
    made = make_request(stream_id, list(range(42)), sampling=exactly(2))
    fields = {name: getattr(made, name) for name in Request.__dataclass_fields__}
    return Request(**fields | {"request_id": f"req-{stream_id}", "traceparent": traceparent})


def test_a_load_is_in_the_trace_of_its_request(store: RunningStore, exporter: InMemorySpanExporter) -> None:
    with offloading(store) as first, offloading(store) as second:
        first.run(request(1))
        first.flush()
        exporter.clear()
        assert second.run(request(2, f"00-{TRACE}-{PARENT}-01")) == 40

        def found() -> dict[str, ReadableSpan]:
            return {span.name: span for span in exporter.get_finished_spans()}

        wanted = {"shoal.kv_offload.lookup", "shoal.kv_offload.load", "shoal.kv_store.lookup", "shoal.kv_store.acquire"}
        wait_until(lambda: wanted <= found().keys(), "all spans have ended")
        spans = found()
    for name in wanted:
        context, attributes = spans[name].context, dict(spans[name].attributes or {})
        assert context is not None
        assert f"{context.trace_id:032x}" == TRACE
        assert attributes["shoal.request_id"] == "req-2"
    for child, parent in (("lookup", "lookup"), ("acquire", "load")):
        outer, inner = spans[f"shoal.kv_offload.{parent}"], spans[f"shoal.kv_store.{child}"]
        assert outer.context is not None
        assert inner.parent is not None
        assert inner.parent.span_id == outer.context.span_id
        assert outer.parent is not None
        assert f"{outer.parent.span_id:016x}" == PARENT
    load = dict(spans["shoal.kv_offload.load"].attributes or {})
    assert (load["shoal.kv.num_loaded"], load["shoal.kv.tier"], load["shoal.kv.outcome"]) == (10, "memory", "complete")
    asked = dict(spans["shoal.kv_offload.lookup"].attributes or {})
    assert (asked["shoal.kv.num_blocks"], asked["shoal.kv.num_in_memory"]) == (10, 10)


def test_writing_back_is_nobodys_request(store: RunningStore, exporter: InMemorySpanExporter) -> None:
    with offloading(store) as h:
        h.run(request(1, f"00-{TRACE}-{PARENT}-01"))
        h.flush()
        wait_until(lambda: "shoal.kv_store.commit" in {s.name for s in exporter.get_finished_spans()}, "it is stored")
        [commit, *_] = [span for span in exporter.get_finished_spans() if span.name == "shoal.kv_store.commit"]
        assert "shoal.request_id" not in (commit.attributes or {})
        assert commit.parent is None


def test_without_an_exporter_there_are_no_spans() -> None:
    assert offload_spans.begin_span("load", Origin("req-1"), 0.0) is None
