"""Logs are one JSON object a line, metrics are served, and nothing stays behind."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from opentelemetry import trace

from shoal.telemetry import serve_metrics, setup_logs, setup_traces


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("restored_logging")
def test_logs_are_json_lines_with_the_service_and_bound_context(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logs("gateway", log_format="json")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("a").info("picked", worker="w1")
        logging.getLogger("library").warning("careful %s", "now")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(x["event"], x["service"], x["request_id"], x["level"]) for x in lines] == [
        ("picked", "gateway", "r1", "info"),
        ("careful now", "gateway", "r1", "warning"),
    ]
    assert lines[0]["worker"] == "w1"


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_show_no_variables(
    capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"]
) -> None:
    setup_logs("gateway", log_format=log_format)

    def check(api_key: str) -> None:
        raise ValueError(f"a key of {len(api_key)} letters")

    try:
        check("sk-" + "s" * 9)
    except ValueError as error:
        structlog.get_logger("a").error("failed", exc_info=error)
    text = capsys.readouterr().err
    assert "a key of 12 letters" in text
    assert "in check" in text or '"check"' in text
    assert "sk-sss" not in text


def test_metrics_are_served_until_stopped() -> None:
    port, stop = serve_metrics("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        assert b"python_info" in response.read()
    with pytest.raises(OSError, match=rf"metrics on 127\.0\.0\.1:{port}"):
        serve_metrics("127.0.0.1", port)
    stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_traces_are_off_without_an_endpoint() -> None:
    before = trace.get_tracer_provider()
    setup_traces("gateway", "")()
    assert trace.get_tracer_provider() is before
