from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from shoal.client import ResourceExhausted
from shoal.client.bench.backends import OpenAiBackend, RequestOptions
from shoal.client.bench.records import Prompt
from shoal.client.cli.app import cli
from support.fake_gateway import Fail, FakeGateway, Reply
from support.fake_openai import FakeOpenAi


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    with FakeGateway(otherwise=Reply("0123456789", bytes_per_chunk=1)) as fake:
        monkeypatch.setenv("SHOAL_ENDPOINT", fake.endpoint)
        yield fake


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "serve", *arguments])


def test_a_run_counts_every_token_and_writes_its_numbers(gateway: FakeGateway, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = bench(
        *("--num-prompts", "6", "--concurrency", "3", "--input-len", "5:9", "--output-len", "4", "--ignore-eos"),
        *("--warmup", "1", "--slo", "ttft=10s,e2e=20s", "--json", str(out)),
    )
    assert result.exit_code == 0, result.stderr
    assert "Time to first token" in result.stdout
    assert len(gateway.calls) == 7
    measured = gateway.calls[1:]
    assert all(call.request.sampling.ignore_eos and call.request.sampling.max_tokens == 4 for call in measured)
    assert all(5 <= len(call.request.tokens.ids) <= 9 for call in measured)
    data = json.loads(out.read_text())
    assert (data["completed"], data["output_tokens"], data["errors"]) == (6, 24, {})
    assert data["prompt_tokens"] == sum(len(call.request.tokens.ids) for call in measured)
    assert (data["ttft_ms"]["count"], data["itl_ms"]["count"], data["tpot_ms"]["count"]) == (6, 18, 6)
    assert data["goodput_requests_per_s"] == data["requests_per_s"] > 0
    assert data["settings"]["concurrency"] == 3


def test_errors_are_counted_by_code_never_retried_and_exit_1(gateway: FakeGateway) -> None:
    gateway.script.extend([Fail(ResourceExhausted("full"))] * 2)
    result = bench("--num-prompts", "4", "--concurrency", "1", "--warmup", "0", "--output-len", "2")
    assert result.exit_code == 1
    assert "Failed: RESOURCE_EXHAUSTED" in result.stdout
    assert "2 of 4 requests failed" in result.stderr
    assert len(gateway.calls) == 4


def test_poisson_and_files(gateway: FakeGateway, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("alpha\nbeta\n")
    result = bench("--prompts", str(prompts), "--num-prompts", "4", "--request-rate", "1000", "--warmup", "0")
    assert result.exit_code == 0, result.stderr
    assert sorted(call.request.text for call in gateway.calls) == ["alpha", "alpha", "beta", "beta"]


def test_a_failed_warm_up_ends_the_run(gateway: FakeGateway) -> None:
    gateway.script.append(Fail(ResourceExhausted("full")))
    result = bench("--num-prompts", "4", "--warmup", "1")
    assert result.exit_code == 1
    assert "warm-up request failed with RESOURCE_EXHAUSTED" in result.stderr


@pytest.mark.parametrize(
    ("prompt", "path", "key", "value"),
    [
        (Prompt(7, token_ids=(1, 2)), "/v1/completions", "prompt", [1, 2]),
        (Prompt(7, text="x"), "/v1/completions", "prompt", "x"),
        (
            Prompt(7, messages=({"role": "user", "content": "q"},)),
            "/v1/chat/completions",
            "messages",
            [{"role": "user", "content": "q"}],
        ),
    ],
)
async def test_the_openai_backend_reads_events_and_usage(prompt: Prompt, path: str, key: str, value: object) -> None:
    with FakeOpenAi() as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            record = await OpenAiBackend(http, RequestOptions(model="m", ignore_eos=True)).send(prompt)
    assert record.error_code is None
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (3, 5, 1)
    assert len(record.output_times_s) == 2  # the empty first event is no output
    assert server.requests[0][0] == path
    body = server.requests[0][1]
    assert body[key] == value
    assert (body["max_tokens"], body["ignore_eos"], body["stream_options"]) == (7, True, {"include_usage": True})


async def test_the_openai_backend_names_failures() -> None:
    with FakeOpenAi(status=503) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            record = await OpenAiBackend(http, RequestOptions()).send(Prompt(1, text="x"))
    assert record.error_code == "HTTP 503"
    async with httpx.AsyncClient(base_url="http://127.0.0.1:1") as http:
        record = await OpenAiBackend(http, RequestOptions()).send(Prompt(1, text="x"))
    assert record.error_code == "ConnectError"
