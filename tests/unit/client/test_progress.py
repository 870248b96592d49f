from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console

from shoal.client.cli.progress import MeshProgress


@dataclass(frozen=True)
class Event:
    component: str
    state: str
    detail: str = ""
    progress: float | None = None


EVENTS = [
    Event("mesh", "starting", "demo"),
    Event("model", "preparing", "hf://x"),
    Event("model", "preparing", "1 of 2", 0.5),
    Event("model", "ready", "/m", 1.0),
    Event("worker-0", "waiting"),
    Event("worker-0", "starting"),
    Event("worker-0", "ready"),
    Event("gateway-0", "crash-loop", "exit code 1"),
    Event("mesh", "ready", "127.0.0.1:1"),
    Event("mesh", "stopping"),
    Event("worker-0", "stopped"),
]


def test_a_pipe_gets_one_line_for_what_matters() -> None:
    file = io.StringIO()
    with MeshProgress(Console(file=file, width=100), clock=lambda: 1.5) as progress:
        for event in EVENTS:
            progress.on_event(event)
    assert file.getvalue().splitlines() == [
        "[   0.0 s] demo",
        "[   0.0 s] model: fetching hf://x",
        "[   0.0 s] model ready: /m",
        "[   0.0 s] worker-0 ready",
        "[   0.0 s] gateway-0 crash-loop: exit code 1",
        "[   0.0 s] stopping",
    ]


def shown_in_a_pipe(*events: tuple[float, Event]) -> list[str]:
    """Lines for events that come at given times."""
    file, now_s = io.StringIO(), 0.0
    with MeshProgress(Console(file=file, width=100), clock=lambda: now_s) as progress:
        for now_s, event in events:  # noqa: B007  # the clock reads it
            progress.on_event(event)
    return file.getvalue().splitlines()


def test_a_pipe_gets_a_line_for_each_stage_and_now_and_then_how_far_it_is() -> None:
    lines = shown_in_a_pipe(
        (1.0, Event("worker-0", "starting")),
        (2.0, Event("worker-0", "starting", "weights", 0.0)),
        *((2.0 + percent / 10, Event("worker-0", "starting", "weights", percent / 100)) for percent in range(1, 100)),
        (12.0, Event("worker-0", "starting", "warm-up", 0.0)),
        (12.1, Event("worker-0", "starting", "warm-up", 1.0)),
        (12.2, Event("worker-0", "ready", "127.0.0.1:1")),
    )
    assert lines == [
        "[   2.0 s] worker-0 starting: weights 0% (1 s)",
        "[   7.0 s] worker-0 starting: weights 50% (6 s)",
        "[  12.0 s] worker-0 starting: warm-up 0% (11 s)",
        "[  12.2 s] worker-0 ready: 127.0.0.1:1",
    ]


def test_a_silent_start_and_a_download_show_that_time_passes() -> None:
    lines = shown_in_a_pipe(
        (0.0, Event("model", "preparing", "hf://x")),
        (1.0, Event("model", "preparing", "1 MB of 9 MB", 1 / 9)),
        (6.0, Event("model", "preparing", "3 MB of 9 MB", 1 / 3)),
        (7.0, Event("model", "ready", "/m", 1.0)),
        (7.0, Event("tokenizer-0", "starting")),
        (17.0, Event("tokenizer-0", "starting")),
        (18.0, Event("tokenizer-0", "backoff", "exit code 1")),
        (19.0, Event("tokenizer-0", "starting")),
        (29.0, Event("tokenizer-0", "starting")),
    )
    assert lines == [
        "[   0.0 s] model: fetching hf://x",
        "[   6.0 s] model preparing: 3 MB of 9 MB 33% (6 s)",
        "[   7.0 s] model ready: /m",
        "[  17.0 s] tokenizer-0 starting (10 s)",
        "[  18.0 s] tokenizer-0 backoff: exit code 1",
        "[  29.0 s] tokenizer-0 starting (10 s)",
    ]


def test_a_terminal_shows_the_stage_with_a_bar_and_the_time_that_passes() -> None:
    file, now_s = io.StringIO(), 0.0
    console = Console(file=file, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    progress = MeshProgress(console, clock=lambda: now_s)
    progress.on_event(Event("worker-0", "starting"))
    progress.on_event(Event("worker-0", "starting", "weights", 0.4))
    progress.on_event(Event("gateway-0", "waiting"))
    now_s = 3.0
    console.print(progress._render())
    worker, gateway = file.getvalue().splitlines()
    assert worker.split()[1:5] == ["worker-0", "starting", "3.0", "s"]
    assert "━━━" in worker
    assert worker.split()[-2:] == ["40%", "weights"]
    assert gateway.split() == ["·", "gateway-0", "waiting"]
    file.seek(0)
    file.truncate()
    progress.on_event(Event("worker-0", "ready", "127.0.0.1:1"))
    now_s = 9.0
    console.print(progress._render())
    assert "✓ worker-0  ready   3.0 s 127.0.0.1:1" in file.getvalue()


def test_a_terminal_gets_a_live_list_and_lines_once_it_is_finished() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    with MeshProgress(console, clock=lambda: 1.5) as progress:
        for event in EVENTS[:8]:
            progress.on_event(event)
        progress.finish()
        before = file.getvalue()
        progress.on_event(Event("worker-0", "backoff", "killed by SIGKILL"))
    assert "✓ model" in before
    assert "✓ worker-0" in before
    assert "✗ gateway-0" in before
    assert "worker-0 backoff: killed by SIGKILL" in file.getvalue().removeprefix(before)
