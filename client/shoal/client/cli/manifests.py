"""What `shoal validate` and `shoal plan` share: which files, and what is wrong with what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from shoal.client.cli.failures import explain
from shoal.client.cli.session import Session

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Found:
    """One InferenceService of a file."""

    path: Path
    service: Any
    """`shoal.operator.api.InferenceService`."""


def manifest_options(command: _F) -> _F:
    """Adds `-f`, any number of times, and files without it; the command gets `paths`."""
    files = click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
    named = click.option(
        "-f",
        "--file",
        "paths",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A file of InferenceServices; may be given several times, as in -f FILE -f FILE or -f *.yaml.",
    )
    return named(files(command))


def load_all(
    session: Session, api: Any, paths: Sequence[Path], *, kubernetes: bool, find_more: Callable[[Any], list[Any]]
) -> tuple[list[Found], bool]:
    """What the right ones of these files hold, and whether all of them are right.

    Prints what is wrong with each, and what to know of what is allowed. find_more: as for `load_manifests`.
    """
    if not paths:
        raise click.UsageError("give a manifest: -f FILE")
    from shoal.operator.api.advice import advise

    found, all_right = [], True
    for path in dict.fromkeys(paths):
        try:
            manifests = api.load_manifests(path, find_more)
        except api.ManifestError as error:
            session.err.print(explain(error), markup=False, style="bold red", soft_wrap=True)
            all_right = False
            continue
        for manifest in manifests:
            found.append(Found(path, manifest.service))
            for advice in manifest.located(advise(manifest.service, on_kubernetes=kubernetes)):
                session.err.print(f"warning: {path}: {advice}", markup=False, style="yellow", soft_wrap=True)
    return found, all_right
