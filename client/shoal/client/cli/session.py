"""What subcommands share: where to connect, the consoles, and the options that every one of them takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click
from rich.console import Console

from shoal.client.cli.failures import CommandFailed
from shoal.client.cli.running import find_running

_F = TypeVar("_F", bound=Callable[..., Any])
MAX_STDIN_BYTES = 8 << 20


@dataclass(slots=True)
class Session:
    """One run of the command."""

    debug: bool = False
    endpoint: str | None = None
    api_key: str | None = None
    timeout_s: float = 600.0
    out: Console = field(default_factory=lambda: Console(highlight=False))
    """Answers. Styled on a terminal, plain in a pipe."""
    err: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    """Everything that is no answer."""

    def find_endpoint(self) -> str:
        """As given, else that of the mesh that runs here. Raises CommandFailed when there is none or more than one."""
        if self.endpoint:
            return self.endpoint
        running = find_running()
        if len(running) == 1:
            return running[0].endpoint
        if not running:
            raise CommandFailed(
                "no endpoint: give --endpoint or set SHOAL_ENDPOINT, or start a mesh here with `shoal up -f FILE`"
            )
        names = ", ".join(f"{mesh.endpoint} ({mesh.name})" for mesh in running)
        raise CommandFailed(f"{len(running)} meshes run here; choose one with --endpoint: {names}")


def get_session(ctx: click.Context) -> Session:
    """The session of a command's context."""
    session = ctx.ensure_object(Session)
    assert isinstance(session, Session)
    return session


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value is not None and value is not False:
            setattr(get_session(ctx), name, value)
        return value

    return callback


def debug_option(command: _F) -> _F:
    """Adds `--debug`, which also stands before the subcommand."""
    return click.option("--debug", is_flag=True, expose_value=False, callback=_store("debug"), help="Show tracebacks.")(
        command
    )


def endpoint_options(command: _F) -> _F:
    """Adds `--endpoint`, `--api-key`, `--timeout` and `--debug`; they end up in the session."""
    for option in (
        debug_option,
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            expose_value=False,
            callback=_store("timeout_s"),
            help="Deadline of a request in seconds.  [default: 600]",
        ),
        click.option(
            "--api-key",
            envvar="SHOAL_API_KEY",
            expose_value=False,
            callback=_store("api_key"),
            help="Sent as a Bearer token.  [env: SHOAL_API_KEY]",
        ),
        click.option(
            "--endpoint",
            envvar="SHOAL_ENDPOINT",
            expose_value=False,
            callback=_store("endpoint"),
            help="host:port, http:// or https://.  [env: SHOAL_ENDPOINT; default: the mesh that runs here]",
        ),
    ):
        command = option(command)
    return command


def read_stdin() -> str:
    """All of stdin, without its last line break. Raises CommandFailed when it is too long or empty."""
    text = sys.stdin.read(MAX_STDIN_BYTES + 1)
    if len(text) > MAX_STDIN_BYTES:
        raise CommandFailed(f"stdin holds more than {MAX_STDIN_BYTES >> 20} MiB")
    text = text.removesuffix("\n")
    if not text.strip():
        raise CommandFailed("nothing to send: give a prompt, or pipe one in")
    return text


def stdin_is_terminal() -> bool:
    """Whether a person types."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
