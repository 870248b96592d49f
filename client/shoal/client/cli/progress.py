"""Shows how a mesh comes up: a live list on a terminal, one line for each thing that matters in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

_WHOLE = "mesh"
_PROBLEMS = frozenset({"unhealthy", "backoff", "crash-loop", "failed"})
_STYLES = {"ready": "green", "failed": "bold red", "crash-loop": "bold red", "unhealthy": "yellow", "backoff": "yellow"}
_STILL = {"ready": "✓", "failed": "✗", "crash-loop": "✗", "stopped": "·", "waiting": "·"}


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


class MeshProgress:
    """A context manager around the mesh; `on_event` goes to `LocalMesh`. After `finish`, events become lines."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start_s = clock()
        self._components: dict[str, tuple[MeshEvent, float]] = {}
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=False)
        self._is_live = console.is_terminal
        self._preparing = False

    def on_event(self, event: MeshEvent) -> None:
        """Takes an event in. Called from the event loop; does not block."""
        if self._is_live and event.component != _WHOLE:
            self._components[event.component] = (event, self._clock() - self._start_s)
            return
        if line := self._line(event):
            self._console.print(line, style=_STYLES.get(event.state), markup=False, soft_wrap=True)

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

    def _line(self, event: MeshEvent) -> str | None:
        """What a pipe gets: what became ready or went wrong, when a download begins, and the beginning of the end."""
        elapsed = f"[{self._clock() - self._start_s:6.1f} s] "
        detail = f": {event.detail}" if event.detail else ""
        if event.component == _WHOLE:
            if event.state == "stopping":
                return f"{elapsed}stopping"
            return f"{elapsed}{event.detail}" if event.state == "starting" and event.detail else None
        if event.state == "preparing":
            first, self._preparing = not self._preparing, True
            return f"{elapsed}{event.component}: fetching {event.detail}" if first else None
        if event.state == "ready" or event.state in _PROBLEMS:
            return f"{elapsed}{event.component} {event.state}{detail}"
        return None

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, (event, since_s) in self._components.items():
            style = _STYLES.get(event.state, "")
            mark = Text(_STILL[event.state], style=style) if event.state in _STILL else self._spinner
            detail: ProgressBar | Text = Text(event.detail.partition("\n")[0], style="dim", overflow="ellipsis")
            if event.state == "preparing" and event.progress is not None:
                detail = ProgressBar(total=1.0, completed=event.progress, width=30)
            table.add_row(mark, Text(name), Text(str(event.state), style=style), Text(f"{since_s:.1f} s"), detail)
        return table
