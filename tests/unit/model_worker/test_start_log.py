from __future__ import annotations

from collections.abc import Iterator

from structlog.testing import capture_logs

from shoal.model_worker.start_log import StartLog


def ticking(*times_s: float) -> Iterator[float]:
    yield from times_s


def test_stages_are_logged_at_every_tenth_and_timed() -> None:
    times_s = ticking(10.0, 12.0, 12.5, 15.5, 18.0, 34.4, 34.4)
    log = StartLog(clock=lambda: next(times_s))
    with capture_logs() as lines:
        log.on_progress("fetch", 0.0)
        for fraction in (0.0, 0.01, 0.09, 0.5, 1.0):
            log.on_progress("weights", fraction)
        log.on_progress("memory", 0.0)
        log.on_progress("graphs", 0.5)
        log.on_progress("graphs", 1.0)
        assert log.finish() == "24.4 s: start 2.0, fetch 0.5, weights 3.0, memory 2.5, graphs 16.4"
    assert [(line["stage"], line["percent"]) for line in lines] == [
        ("fetch", 0),
        ("weights", 0),
        ("weights", 50),
        ("weights", 100),
        ("memory", 0),
        ("graphs", 50),
        ("graphs", 100),
    ]
