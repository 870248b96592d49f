"""What `shoal status` and `shoal doctor` share: which cluster, which namespace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from shoal.client.cli.failures import CommandFailed

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def cluster_options(command: _F) -> _F:
    """Adds `--kubeconfig`, `--namespace`, `--all-namespaces` and `--output`."""
    for option in (
        click.option(
            "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How."
        ),
        click.option("-A", "--all-namespaces", is_flag=True, help="Look into all of them."),
        click.option("-n", "--namespace", help="Where.  [default: the kubeconfig's, or default]"),
        click.option(
            "--kubeconfig",
            type=click.Path(path_type=Path),
            help="File.  [default: KUBECONFIG, ~/.kube/config; in a pod its service account]",
        ),
    ):
        command = option(command)
    return command


def ask_cluster(kubeconfig: Path | None, ask: Callable[[Any], Awaitable[_T]]) -> _T:
    """Runs `ask` with a connected `ApiClient`. Raises CommandFailed without a kubeconfig; ApiError as `ask` does."""
    try:
        from kubernetes_asyncio.config import ConfigException

        from shoal.operator.reconcile.api_client import ApiClient
    except ImportError as error:
        raise CommandFailed(f"this needs what talks to clusters ({error}): pip install 'shoal[kubernetes]'") from error

    async def run() -> _T:
        with _errors_only():
            connected = await ApiClient.connect(kubeconfig)
        async with connected as api:
            return await ask(api)

    try:
        return asyncio.run(run())
    except ConfigException as error:
        raise CommandFailed(f"no cluster: {error}; give --kubeconfig or set KUBECONFIG") from error


def namespace_of(kubeconfig: Path | None, given: str | None, everywhere: bool) -> str | None:
    """As given, else that of the kubeconfig's context; None for all."""
    if everywhere:
        return None
    if given:
        return given
    from kubernetes_asyncio import config

    try:
        with _errors_only():
            _, current = config.list_kube_config_contexts(config_file=None if kubeconfig is None else str(kubeconfig))
    except (config.ConfigException, OSError):
        return "default"
    context = (current or {}).get("context") or {}
    return str(context.get("namespace") or "default")


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """What reads kubeconfigs warns, at each reading, of a file whose absence is told as an error here."""
    log = logging.getLogger("kubernetes_asyncio.config.kube_config")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
