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
