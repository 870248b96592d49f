"""The command group: loads subcommands when they are needed, and turns errors into one red line and an exit code."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

import click

from shoal.client.cli.failures import explain
from shoal.client.cli.session import Session, get_session

_COMMANDS = {
    "up": "up",
    "chat": "chat",
    "generate": "generate",
    "models": "models",
    "explain": "explain",
    "tokenize": "tokenize",
    "validate": "validate",
    "plan": "plan",
    "crd": "crd",
    "status": "status",
    "doctor": "doctor",
    "bench": "bench",
    "kv": "kv",
    "lora": "lora",
    "demo": "demo",
    "version": "version",
}
"""Name -> module of this package that holds a click command called `command`. In the order of the help."""
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """Imports a subcommand's module when it runs (or for help), so that `shoal version` loads no gRPC."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, or None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"shoal.client.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the subcommand."""
        ctx.ensure_object(Session)
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:  # the boundary: everything else is shown to a person
            session = get_session(ctx)
            if session.debug:
                session.err.print(traceback.format_exc(), markup=False, highlight=False, style="dim", soft_wrap=True)
            session.err.print(explain(error), markup=False, highlight=False, style="bold red", soft_wrap=True)
            ctx.exit(EXIT_FAILURE)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, envvar="SHOAL_DEBUG", help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Serves large language models as a mesh of gRPC services, and talks to them."""
    get_session(ctx).debug = debug
