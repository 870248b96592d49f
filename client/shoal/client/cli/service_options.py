"""What commands that speak with one service of a mesh take: where it is, how long to wait, how to show what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from shoal.client.cli.session import debug_option

_F = TypeVar("_F", bound=Callable[..., Any])
_Option = Callable[[Any], Any]


def service_options(*where: _Option, timeout_s: float) -> Callable[[_F], _F]:
    """Adds `as_json`, `timeout_s` (by default that) and the options that say where the service is."""
    options: tuple[_Option, ...] = (
        debug_option,
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            default=timeout_s,
            show_default=True,
            help="Deadline in seconds.",
        ),
        *where,
    )

    def add(function: _F) -> _F:
        for option in options:
            function = option(function)
        return function

    return add
