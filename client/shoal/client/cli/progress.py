"""Shows how a mesh comes up: a live list on a terminal, one line for each thing that matters in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_WHOLE = "mesh"
_MOVING = frozenset({"preparing", "starting"})
_PROBLEMS = frozenset({"unhealthy", "backoff", "crash-loop", "failed"})
_STYLES = {"ready": "green", "failed": "bold red", "crash-loop": "bold red", "unhealthy": "yellow", "backoff": "yellow"}
_STILL = {"ready": "✓", "failed": "✗", "crash-loop": "✗", "stopped": "·", "waiting": "·"}
_BAR_WIDTH = 30
_LINE_INTERVAL_S = 5.0
"""In a pipe: between two lines about the same stage of the same component."""


class MeshEvent(Protocol):
    """What is read of `shoal.operator.substrate.Event`."""

    @property
    def component(self) -> str:
        """A process, `model`, or `mesh` for the whole."""

    @property
    def state(self) -> str:
        """Where it stands."""

    @property
    def detail(self) -> str:
        """For people."""

    @property
    def progress(self) -> float | None:
        """From 0 to 1, when known."""


@dataclass(slots=True)
class _Shown:
    """What is known of a component."""

    event: MeshEvent
    since_s: float
    """When it began what it does; for one that is ready, when it began to start."""
    latest_s: float
    printed_s: float
    """When it last got a line in a pipe."""
    printed: str = ""
    """The stage of that line."""


class MeshProgress:
    """A context manager around the mesh; `on_event` goes to `LocalMesh`. After `finish`, events become lines."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start_s = clock()
        self._components: dict[str, _Shown] = {}
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=False)
        self._is_live = console.is_terminal

    def on_event(self, event: MeshEvent) -> None:
        """Takes an event in. Called from the event loop; does not block."""
        is_whole = event.component == _WHOLE
        line = _mesh_line(event) if is_whole else _line(self._remember(event))
        if line and (is_whole or not self._is_live):
            elapsed = f"[{self._clock() - self._start_s:6.1f} s] "
            self._console.print(elapsed + line, style=_STYLES.get(event.state), markup=False, soft_wrap=True)

    def finish(self) -> None:
        """The mesh is up, or never will be: the list stays as it is."""
        if self._is_live:
            self._live.stop()
            self._is_live = False

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def _remember(self, event: MeshEvent) -> _Shown:
        now_s = self._clock()
        before = self._components.get(event.component)
        if before is None:
            shown = self._components[event.component] = _Shown(event, now_s, now_s, now_s)
            return shown
        goes_on = event.state == before.event.state or (event.state == "ready" and before.event.state in _MOVING)
        if not goes_on:
            before.since_s, before.printed, before.printed_s = now_s, "", now_s
        before.event, before.latest_s = event, now_s
        return before

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, shown in list(self._components.items()):  # rendered by another thread
            state = shown.event.state
            style = _STYLES.get(state, "")
            mark = Text(_STILL[state], style=style) if state in _STILL else self._spinner
            table.add_row(
                mark, Text(name), Text(str(state), style=style), Text(self._time(shown)), _detail(shown.event)
            )
        return table

    def _time(self, shown: _Shown) -> str:
        """Counts while something goes on; then how long that took."""
        if shown.event.state == "waiting":
            return ""
        end_s = shown.latest_s if shown.event.state in _STILL else self._clock()
        return f"{end_s - shown.since_s:.1f} s"


def _mesh_line(event: MeshEvent) -> str | None:
    if event.state == "stopping":
        return "stopping"
    return event.detail if event.state == "starting" and event.detail else None


def _line(shown: _Shown) -> str | None:
    """What a pipe gets: what became ready or went wrong, and how far slow starts and downloads are."""
    event = shown.event
    if event.state in _MOVING:
        return _moving_line(shown)
    if event.state == "ready" or event.state in _PROBLEMS:
        return f"{event.component} {event.state}" + (f": {event.detail}" if event.detail else "")
    return None


def _moving_line(shown: _Shown) -> str | None:
    """A stage's beginning, then a line now and then. The amounts of a download are one stage."""
    event, now_s = shown.event, shown.latest_s
    stage = event.detail if event.state == "starting" else event.state
    due_s = shown.printed_s + _LINE_INTERVAL_S
    if stage == shown.printed and now_s < due_s:
        return None
    is_first, shown.printed, shown.printed_s = stage != shown.printed, stage, now_s
    if event.state == "preparing" and is_first:
        return f"{event.component}: fetching {event.detail}"
    percent = "" if event.progress is None else f" {event.progress:.0%}"
    detail = f": {event.detail}{percent}" if event.detail else ""
    return f"{event.component} {event.state}{detail} ({now_s - shown.since_s:.0f} s)"


def _detail(event: MeshEvent) -> RenderableType:
    text = Text(event.detail.partition("\n")[0], style="dim", overflow="ellipsis", no_wrap=True)
    if event.state not in _MOVING or event.progress is None:
        return text
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=event.progress, width=_BAR_WIDTH)
    row.add_row(bar, Text(f"{event.progress:4.0%}"), text)
    return row
