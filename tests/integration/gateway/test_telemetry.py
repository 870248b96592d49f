"""What can be seen of a request: its span and its metrics."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks import block_keys, namespace_key
from shoal.rpc.errors import ResourceExhausted
from support.eventually import eventually
from support.fake_worker import MODEL, Reply
from support.gateway_running import run_gateway

PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
PROMPT = "sixteen letters!"
KEYS = block_keys(namespace_key("d1" * 32, "fake-v1"), list(PROMPT.encode()), 4)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"shoal_gateway_{name}", labels) or 0.0


async def test_the_span_explains_the_pick_and_goes_on_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("shoal.gateway.http.exchange._tracer", provider.get_tracer("test"))
    async with run_gateway() as running:
        running.worker.replies[0] = Reply(cached_tokens=4)
        body = {"prompt": PROMPT}
        headers = {"traceparent": PARENT, "x-request-id": "req-1"}
        await running.http.post("/v1/completions", json=body, headers=headers)
        traceparent = running.worker.calls[0].metadata["traceparent"]
        address = running.worker.address
    [span] = spans.get_finished_spans()
    assert span.name == "POST /v1/completions"
    assert span.context is not None
    assert traceparent.split("-")[1] == PARENT.split("-")[1] == f"{span.context.trace_id:032x}"
    assert traceparent.split("-")[2] == f"{span.context.span_id:016x}"
    attributes: dict[str, Any] = dict(span.attributes or {})
    [prices] = attributes.pop("shoal.pick.prices_s")
    assert "queue=0.0000" in prices
    assert "prefill=0.0" in prices
    assert attributes == {
        "shoal.request_id": "req-1",
        "shoal.model": MODEL,
        "shoal.prompt_tokens": 16,
        "shoal.pick.reason": "load",
        "shoal.pick.endpoints": (address,),
        "shoal.pick.predicted_cached_tokens": 0,
        "shoal.pick.candidates": (f"{address} cached=0 load=0",),
        "shoal.worker": address,
        "shoal.cached_tokens": 4,
    }


async def test_metrics_compare_predicted_and_actual_hits() -> None:
    names = ["predicted_cached_tokens_total", "cached_tokens_total", "completion_tokens_total", "prompt_tokens_total"]
    before = [sample(name, model=MODEL) for name in names]
    picks, firsts = sample("picks_total", reason="prefix"), sample("time_to_first_token_seconds_count", model=MODEL)
    gaps = sample("inter_token_seconds_count", model=MODEL)
    async with run_gateway() as running:
        stored = worker_pb2.KvStored(keys=KEYS, tier=worker_pb2.TIER_DEVICE)
        running.worker.publish(worker_pb2.SubscribeKvEventsResponse(epoch=1, seq=1, stored=stored))
        await eventually(lambda: bool(running.gateway.index.match(KEYS)), "the event arrived")
        running.worker.replies[0] = Reply("Hello", cached_tokens=8)
        await running.generate(text=PROMPT)
    after = [sample(name, model=MODEL) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [12, 8, 6, 16]
    assert sample("picks_total", reason="prefix") == picks + 1
    assert sample("time_to_first_token_seconds_count", model=MODEL) == firsts + 1
    assert sample("inter_token_seconds_count", model=MODEL) == gaps + 5


async def test_requests_are_counted_by_how_they_end() -> None:
    def count(code: str, model: str = MODEL) -> float:
        return sample("requests_total", model=model, code=code)

    before = count("OK"), count("RESOURCE_EXHAUSTED"), count("INVALID_ARGUMENT"), count("NOT_FOUND", "")
    async with run_gateway() as running:
        await running.http.post("/v1/completions", json={"prompt": "x"})
        await running.http.post("/v1/completions", json={"prompt": "x", "temperature": 9})
        await running.http.post("/v1/completions", json={"prompt": "x", "model": "gpt"})
        running.worker.replies[0] = Reply(fail=ResourceExhausted("full"))
        await running.http.post("/v1/completions", json={"prompt": "x"})
    after = count("OK"), count("RESOURCE_EXHAUSTED"), count("INVALID_ARGUMENT"), count("NOT_FOUND", "")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 1]
    assert sample("requests_in_flight", model=MODEL) == 0


async def test_another_worker_than_the_pick_is_counted() -> None:
    before = sample("picks_not_followed_total", model=MODEL)
    async with run_gateway() as running:
        running.worker.replies[0] = Reply(served_by="10.0.0.9:1")
        await running.generate(text="x")
    assert sample("picks_not_followed_total", model=MODEL) == before + 1
