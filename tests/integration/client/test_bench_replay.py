from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from shoal.client import ResourceExhausted
from shoal.client.cli.app import cli
from support.fake_gateway import Fail, FakeGateway, Reply
from support.traces import conversations

PROMISED = {"hit_ratio", "ttft_mean_s", "ttft_p90_s", "e2e_mean_s", "requests", "errors"}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(request) + b"\n" for request in conversations(30)))
    return path


def replay(trace: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "replay", "--trace", str(trace), *arguments])


def test_virtual_policies_stand_side_by_side(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    flags = ("--virtual", "--workers", "2", "--policies", "shoal,round_robin", "--blocks", "200", "--limit", "20")
    result = replay(trace, *flags, "--speedup", "3", "--json", str(out))
    assert result.exit_code == 0, result.stderr
    first_words = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert first_words == ["20", "policy", "shoal", "round_robin", "one"]
    data = json.loads(out.read_text())
    assert list(data["policies"]) == ["shoal", "round_robin"]
    for numbers in data["policies"].values():
        assert numbers.keys() >= PROMISED
        assert (numbers["requests"], numbers["errors"]) == (20, 0)
        assert 0 < numbers["ttft_mean_s"] < numbers["e2e_mean_s"]
        assert 0 <= numbers["hit_ratio"] <= data["oracle"]["hit_ratio"] <= 1
    assert data["settings"]["speedup"] == 3.0


def test_a_plot_is_drawn_where_matplotlib_is(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "picture.png"
    flags = ("--virtual", "--workers", "2", "--policies", "shoal,round_robin", "--limit", "5", "--plot", str(picture))
    if find_spec("matplotlib") is not None:
        assert replay(trace, *flags).exit_code == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("shoal.client.cli.bench_replay.find_spec", lambda name: None)
    result = replay(trace, *flags)
    assert (result.exit_code, "pip install 'shoal[plot]'" in result.stderr) == (1, True)


def test_a_load_chooses_the_speedup(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = replay(trace, "--virtual", "--policies", "round_robin", "--load", "0.5", "--json", str(out))
    assert result.exit_code == 0, result.stderr
    assert "50% of saturation" in result.stdout
    assert json.loads(out.read_text())["settings"]["speedup"] > 1


def test_a_live_endpoint_gets_the_trace_at_its_times(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    with FakeGateway(otherwise=Reply("0123456789", bytes_per_chunk=1)) as fake:
        monkeypatch.setenv("SHOAL_ENDPOINT", fake.endpoint)
        fake.script.append(Fail(ResourceExhausted("full")))
        result = replay(trace, "--speedup", "1000", "--limit", "8", "--json", str(out))
        requests = [call.request for call in fake.calls]
    assert (result.exit_code, "1 requests failed" in result.stderr) == (1, True)
    expected = conversations(30)[:8]
    assert sorted(len(r.tokens.ids) for r in requests) == sorted(traced.input_length for traced in expected)
    assert len({tuple(r.tokens.ids[:512]) for r in requests}) == 1, "all begin with the same block"
    assert all(r.sampling.ignore_eos for r in requests)
    live = json.loads(out.read_text())["policies"]["live"]
    assert live.keys() >= PROMISED
    assert (live["requests"], live["errors"]) == (8, 1)


def test_what_does_not_fit_is_refused(trace: Path) -> None:
    result = replay(trace, "--policies", "shoal")
    assert (result.exit_code, "--policies needs --virtual" in result.stderr) == (2, True)
    result = replay(trace, "--virtual", "--policies", "best")
    assert (result.exit_code, "'best' is no policy" in result.stderr) == (1, True)
    trace.write_text('{"timestamp": 0}\n')
    result = replay(trace, "--virtual")
    assert (result.exit_code, "line 1: Object missing required field `input_length`" in result.stderr) == (1, True)
