"""What gateways' metrics say of caches, and how they are asked."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.operator.reconcile.cache_watch import CacheWatch, Gateway, MetricsFetcher, gateways_among
from shoal.operator.reconcile.caches import Reading, judge_caches, parse_reading

KEY = ("default", "smol")
GATEWAY = Gateway("smol-gateway-a", "u1", "http://a/metrics")
HEALTHY = Reading(ages_s={"w1": 0.4, "w2": 1.1})
SILENT = Reading(num_stale=1, ages_s={"w1": 0.4, "w2": 31.0})
PAGE = """
# HELP shoal_gateway_kv_event_age_seconds Since the last message of a worker's KV events.
# TYPE shoal_gateway_kv_event_age_seconds gauge
shoal_gateway_kv_event_age_seconds{worker="10.0.0.1:50051"} 31.5
shoal_gateway_kv_event_age_seconds{worker="10.0.0.2:50051"} 0.25
shoal_gateway_workers_without_kv_events 1.0
shoal_gateway_worker_predicted_cached_tokens_total{worker="10.0.0.1:50051"} 1.2e+06
shoal_gateway_worker_predicted_cached_tokens_created{worker="10.0.0.1:50051"} 1.7e+09
shoal_gateway_worker_cached_tokens_total{worker="10.0.0.1:50051"} 500.0
shoal_gateway_requests_total{code="OK",model="m"} 12.0
"""


def hits(predicted: float, cached: float) -> Reading:
    return Reading(ages_s={"w1": 0.1}, predicted_tokens={"w1": predicted}, cached_tokens={"w1": cached})


def test_a_page_is_read() -> None:
    reading = parse_reading(PAGE)
    assert reading.stale == (("10.0.0.1:50051", 31.5),)
    assert len(reading.ages_s) == 2
    assert reading.predicted_tokens == {"10.0.0.1:50051": 1.2e6}
    assert reading.cached_tokens == {"10.0.0.1:50051": 500.0}
    assert parse_reading("") == Reading()


@pytest.mark.parametrize(
    ("readings", "unreachable", "status", "reason", "words"),
    [
        ({}, {}, "Unknown", "NotObserved", "no gateway follows"),
        ({"a": [Reading()]}, {}, "Unknown", "NotObserved", "no gateway follows"),
        ({"a": [HEALTHY]}, {}, "True", "Flowing", "1 gateway told by 2 workers"),
        ({"a": [SILENT]}, {}, "True", "Flowing", "1 gateway"),  # once is not twice
        ({"a": [SILENT, SILENT], "b": [HEALTHY]}, {}, "False", "EventsStopped", "at 1 of 2 gateways"),
        ({"a": [SILENT, SILENT]}, {"b": "no route"}, "False", "EventsStopped", "a hears nothing of w2"),
        ({"a": [SILENT, HEALTHY]}, {}, "True", "Flowing", "2 workers"),
        ({"a": [HEALTHY]}, {"b": "no route"}, "Unknown", "GatewaysUnreachable", "b does not say: no route"),
        ({"a": [hits(0, 0), hits(50_000, 2_000)]}, {}, "False", "HitsNotAsPredicted", "w1 had 4%"),
        ({"a": [hits(0, 0), hits(50_000, 40_000)]}, {}, "True", "Flowing", ""),
        ({"a": [hits(0, 0), hits(9_000, 0)]}, {}, "True", "Flowing", ""),  # too few to say
    ],
)
def test_the_judgement(readings: Any, unreachable: Any, status: str, reason: str, words: str) -> None:
    state = judge_caches(readings, unreachable)
    assert (state.status, state.reason) == (status, reason)
    assert words in state.message


async def test_changes_are_told_once_and_a_restarted_gateway_is_another() -> None:
    pages = [PAGE.replace(" 31.5", " 0.5").replace("events 1.0", "events 0.0"), PAGE, PAGE, PAGE]
    told: list[str] = []

    async def fetch(url: str) -> str:
        assert url == GATEWAY.url
        return pages.pop(0)

    watch = CacheWatch(fetch, lambda key: told.append(watch.state(key).reason))
    for _ in range(4):
        await watch.look({KEY: [GATEWAY]})
    assert told == ["Flowing", "EventsStopped"]
    pages = [PAGE]
    await watch.look({KEY: [Gateway(GATEWAY.pod, "u2", GATEWAY.url)]})
    assert watch.state(KEY).status == "True", "heard once of the new one"
    await watch.look({})
    assert watch.state(KEY).reason == "NotObserved"


@pytest.mark.parametrize("value", ["1e999", "-1", "1.2.3", "1e300", "e", "-1e999"])
@pytest.mark.parametrize(
    "name", ["shoal_gateway_workers_without_kv_events", 'shoal_gateway_kv_event_age_seconds{worker="w"}']
)
async def test_one_page_of_nonsense_is_that_pods_alone(name: str, value: str) -> None:
    async def fetch(url: str) -> str:
        return PAGE if url == GATEWAY.url else f"{name} {value}\n"

    watch = CacheWatch(fetch, lambda key: None)
    other = ("default", "other")
    for _ in range(2):
        await watch.look({KEY: [GATEWAY], other: [Gateway("liar", "u3", "http://b/metrics")]})
    assert watch.state(KEY).reason == "EventsStopped"
    assert watch.state(other).reason == "GatewaysUnreachable"
    assert value in watch.state(other).message


async def test_a_bug_at_one_gateway_does_not_keep_the_others_from_being_asked() -> None:
    async def fetch(url: str) -> str:
        if url == GATEWAY.url:
            return PAGE
        raise KeyError(url)

    watch = CacheWatch(fetch, lambda key: None)
    for _ in range(2):
        await watch.look({KEY: [GATEWAY], ("default", "other"): [Gateway("odd", "u3", "http://b/metrics")]})
    assert watch.state(KEY).reason == "EventsStopped"


@settings(max_examples=200, deadline=None)
@given(page=st.text(alphabet='shoal_gateway_kv_events{}="\n 0123456789.eE+-', max_size=200), line=st.integers(0, 12))
def test_any_page_is_read_or_refused(page: str, line: int) -> None:
    lines = PAGE.splitlines()
    text = "\n".join([*lines[:line], page, *lines[line:]])
    with contextlib.suppress(ValueError):
        reading = parse_reading(text)
        judge_caches({"a": [reading, reading]}, {})


async def test_pages_are_fetched_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.operator.reconcile.cache_watch._MAX_BYTES", 1000)

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/large":
            return web.Response(body=b"x" * 2000)
        return web.Response(text=PAGE[:500], status=200 if request.path == "/metrics" else 503)

    app = web.Application()
    app.router.add_get("/{path}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with MetricsFetcher() as fetcher:
            assert await fetcher.fetch(f"http://{host}:{port}/metrics") == PAGE[:500]
            for path, why in (("large", "more than"), ("other", "answers 503")):
                with pytest.raises(OSError, match=why):
                    await fetcher.fetch(f"http://{host}:{port}/{path}")
            with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
                await fetcher.fetch("http://127.0.0.1:9/metrics")
    finally:
        await runner.cleanup()


def test_ready_gateways_are_asked() -> None:
    pod: dict[str, Any] = {
        "metadata": {"name": "g", "uid": "u", "labels": {"app.kubernetes.io/component": "gateway"}},
        "spec": {"containers": [{"name": "gateway", "ports": [{"name": "metrics", "containerPort": 9090}]}]},
        "status": {"podIP": "10.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    assert gateways_among([pod]) == [Gateway("g", "u", "http://10.0.0.9:9090/metrics")]
    six = {**pod, "status": {**pod["status"], "podIP": "fd00::1"}}
    assert gateways_among([six])[0].url == "http://[fd00::1]:9090/metrics"
    unready = {**pod["status"], "conditions": [{"type": "Ready", "status": "False"}]}
    ending = {**pod["metadata"], "deletionTimestamp": "2030-01-01T00:00:00Z"}
    assert gateways_among([{**pod, "status": unready}, {**pod, "metadata": ending}, {**pod, "status": {}}]) == []
