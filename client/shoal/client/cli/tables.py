"""Tables that lose nothing: wrapped on a terminal, in a pipe one line a row."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table

_UNBOUNDED: Final = 1 << 16
"""Columns: longer than any row."""


def add_columns(table: Table, *names: str) -> None:
    """The last one is text, which is wrapped between words; names in the others stay in one line if there is room."""
    for name in names:
        table.add_column(name, no_wrap=name != names[-1], overflow="fold")


def print_table(out: Console, table: Table) -> None:
    """As wide as it needs to be, unless a person looks at it."""
    if out.is_terminal:
        out.print(table)
        return
    wide = Console(file=out.file, width=_UNBOUNDED, highlight=False, no_color=True)
    with wide.capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        out.print(line.rstrip(), markup=False, soft_wrap=True)
