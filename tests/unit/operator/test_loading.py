"""What a process says of its start is read from its log, whatever else stands there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.operator.substrate.loading import Loading, LoadingLog


def say(stage: str, percent: float | None = None) -> str:
    line = {"event": "loading", "stage": stage, "percent": percent, "level": "info"}
    return json.dumps(line) + "\n"


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_the_latest_word_counts_and_is_told_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append(log, say("of an earlier start", 90))
    loading = LoadingLog(log)
    assert loading.read() is None
    append(log, say("fetch", 0) + "plain words about loading\n" + say("weights", 40) + '{"event": "metrics"}\n')
    assert loading.read() == Loading("weights", 0.4)
    assert loading.read() is None


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    loading = LoadingLog(log)
    assert loading.read() is None  # there is no file yet
    line = say("weights", 50)
    append(log, line[:20])
    assert loading.read() is None
    append(log, line[20:])
    assert loading.read() == Loading("weights", 0.5)


def test_it_survives_a_cut_of_the_log_and_a_flood(tmp_path: Path) -> None:
    log = tmp_path / "log"
    loading = LoadingLog(log)
    append(log, "x" * 1_000_000 + "\n" + say("weights", 10))
    assert loading.read() == Loading("weights", 0.1)
    log.write_text(say("weights", 20))
    assert loading.read() == Loading("weights", 0.2)
    append(log, "y" * 1_000_000)
    assert loading.read() is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (say("warm-up"), Loading("warm-up", None)),
        (say("weights", 1e300), Loading("weights", 1.0)),
        (say("weights", -5), Loading("weights", 0.0)),
        ('{"event": "loading"}\n', None),
        ('{"event": "loading", "stage": 5}\n', None),
        ('["loading"]\n', None),
        ('{"event": "ready", "stage": "loading"}\n', None),
    ],
)
def test_odd_lines(tmp_path: Path, line: str, expected: Loading | None) -> None:
    loading = LoadingLog(tmp_path / "log")
    append(tmp_path / "log", line)
    assert loading.read() == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary())
def test_no_bytes_raise(tmp_path: Path, noise: bytes) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"")
    loading = LoadingLog(log)
    log.write_bytes(noise + b'"loading"\n')
    assert loading.read() is None
