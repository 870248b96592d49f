"""`shoal explain` and `Client.explain`, against a gateway that knows one request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shoal.api.gateway.v1 import explain_pb2
from shoal.client import AsyncClient, Client, NotFound
from shoal.client.cli.app import cli
from support.fake_gateway import FakeGateway


def candidate(worker: str, cached: int, queue_s: float) -> explain_pb2.CandidateExplanation:
    terms = [explain_pb2.Term(name="queue", seconds=queue_s), explain_pb2.Term(name="prefill", seconds=0.25)]
    terms.append(explain_pb2.Term(name="patience", seconds=1e-9))
    return explain_pb2.CandidateExplanation(worker=worker, cached_tokens=cached, num_requests=3, terms=terms)


LOST = explain_pb2.AttemptExplanation(
    picked_s=0.002,
    reason="prefix",
    endpoints=["10.0.0.1:1", "10.0.0.2:1"],
    worker="10.0.0.1:1",
    predicted_cached_tokens=960,
    predicted_cached_tokens_at_worker=960,
    cached_tokens=128,
    predicted_ttft_s=0.1,
    ttft_s=0.4,
    delivered_tokens=7,
    lost="stall",
    error="the worker sent nothing for too long",
    candidates=[candidate("10.0.0.1:1", 960, 0.001), candidate("10.0.0.2:1", 0, 0.5)],
    num_candidates=20,
)
MOVED = explain_pb2.AttemptExplanation(
    picked_s=5.0, reason="load", endpoints=["10.0.0.2:1"], worker="10.0.0.3:1", elsewhere=True
)
KNOWN = explain_pb2.Explanation(
    request_id="some-id",
    gateway="10.0.0.9:1",
    model="fake",
    arrived_unix_s=1.7e9,
    prompt_tokens=1024,
    num_completions=2,
    dispatch_s=0.002,
    queue_s=0.0015,
    ttft_s=0.402,
    total_s=6.5,
    completion_tokens=64,
    code="OK",
    attempts=[LOST, MOVED],
    regret_s=-0.25,
)


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    monkeypatch.setenv("SHOAL_RUNTIME_DIR", str(tmp_path))
    with FakeGateway() as fake:
        fake.explanations = [KNOWN]
        monkeypatch.setenv("SHOAL_ENDPOINT", fake.endpoint)
        yield fake


def shoal(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_the_table_tells_the_story(gateway: FakeGateway) -> None:
    result = shoal("explain", "some-id")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "ended OK, 64 tokens, after 6.50 s",
        "waited 2.0 ms before it was sent to a worker, 1.5 ms of it in the queue",
        "first token after 402.0 ms",
        "regret -250.0 ms: better than predicted for the best other worker",
        "Attempt 1: sent to 10.0.0.1:1 after 2.0 ms (prefix)",
        "cached predicted 960, actual 128 tokens",
        "TTFT predicted 100.0 ms, actual 400.0 ms",
        "moved on stall, after 7 tokens: the worker sent nothing for too long",
        "queue prefill total",
        "candidate cached requests waiting ms ms ms",
        "* 10.0.0.1:1 960 3 0 1.0 250.0 251.0",
        "10.0.0.2:1 0 3 0 500.0 250.0 750.0",
        "and 18 more",
        "Attempt 2: sent to 10.0.0.3:1 after 5.00 s (load)",
        "Envoy went to 10.0.0.3:1 instead of 10.0.0.2:1",
    ):
        assert line in lines, result.stdout


def test_json_has_everything(gateway: FakeGateway) -> None:
    [answer] = json.loads(shoal("explain", "some-id", "--json").stdout)
    assert (answer["regret_s"], answer["attempts"][1]["cached_tokens"]) == (-0.25, None)
    assert answer["attempts"][0]["candidates"][1]["terms"] == {"queue": 0.5, "prefill": 0.25, "patience": 1e-9}


def test_an_unknown_request_is_one_line_without_a_wrong_hint(gateway: FakeGateway) -> None:
    result = shoal("explain", "other")
    assert (result.exit_code, result.stderr) == (1, "error: no request 'other' of yours is known\n")


async def test_both_clients_explain(gateway: FakeGateway) -> None:
    with Client(gateway.endpoint) as client:
        [mine] = client.explain("some-id")
        with pytest.raises(NotFound):
            client.explain("other")
    async with AsyncClient(gateway.endpoint) as client:
        assert await client.explain("some-id") == (mine,)
    assert [attempt.lost for attempt in mine.attempts] == ["stall", ""]
    assert (mine.ttft_s, mine.attempts[1].ttft_s) == (0.402, None)
