"""`shoal lora`: publishes LoRA adapters to a registry, lists them, fetches them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from shoal.api.lora_registry.v1 import lora_registry_pb2 as pb
from shoal.client.cli.failures import CommandFailed
from shoal.client.cli.kv import size
from shoal.client.cli.service_options import service_options
from shoal.client.cli.session import Session
from shoal.client.lora_admin import FILE_NAMES, LoraAdmin, NoAnswer
from shoal.rpc.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable

DEFAULT_ENDPOINT: Final = "127.0.0.1:50055"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MIN_WIDTH: Final = 120


@click.group("lora")
def command() -> None:
    """Publish LoRA adapters to a registry, list them, fetch them."""


_registry_options = service_options(
    click.option(
        "--endpoint",
        envvar="SHOAL_LORA_ENDPOINT",
        default=DEFAULT_ENDPOINT,
        show_default=True,
        help="host:port of the registry.  [env: SHOAL_LORA_ENDPOINT]",
    ),
    timeout_s=1800.0,
)
"""As `_connect` takes them."""


@command.command("publish")
@click.argument("name")
@click.argument("uri")
@click.option("--sha256", default="", help="Digest that adapter_model.safetensors must have.")
@click.option("--rank", type=click.IntRange(1, 512), default=None, help="Rank that it must have.")
@click.option("--digest", default="", help="Digest that the version must have.")
@_registry_options
@click.pass_obj
def publish(
    session: Session, /, name: str, uri: str, sha256: str, rank: int | None, digest: str, as_json: bool, **where: Any
) -> None:
    """Have the registry fetch an adapter, check it and call it NAME.

    URI is its folder in PEFT's layout: a path of the registry's machine, hf://, pypi:// or https://.
    """
    source = uri if "://" in uri else str(Path(uri).expanduser().absolute())
    with _connect(**where) as registry, session.err.status(f"publishing {name}"):
        done = registry.publish(name, source, sha256=sha256, rank=rank or 0, digest=digest)
    if as_json:
        _print_json({"name": name, "version": done.version, "changed": done.changed, **_as_data(done.adapter)})
        return
    what = "is now" if done.changed else "was already"
    session.out.print(f"{name} {what} version {done.version}: {_describe(done.adapter)}", markup=False, soft_wrap=True)


@command.command("list")
@_registry_options
@click.pass_obj
def list_adapters(session: Session, /, as_json: bool, **where: Any) -> None:
    """List names, the versions that they point to, and what went wrong."""
    with _connect(**where) as registry:
        found = registry.list()
    if as_json:
        for name in found.names:
            _print_json({"name": name.name, "version": name.version, **_as_data(found.versions[name.digest])})
        for problem_name, text in found.problems.items():
            _print_json({"name": problem_name, "problem": text})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "version", "digest", "rank", "dtype", "size", "modules", "published"):
        table.add_column(column, justify="right" if column in ("version", "rank", "size") else "left", no_wrap=True)
    for name in found.names:
        adapter = found.versions[name.digest]
        table.add_row(
            name.name, str(name.version), name.digest[:16], str(adapter.rank), adapter.dtype, size(adapter.num_bytes),
            " ".join(adapter.target_modules), _time(adapter),
        )  # fmt: skip
    out = session.out
    if out.width < _MIN_WIDTH:
        out = Console(file=out.file, width=_MIN_WIDTH, highlight=False)
    out.print(table, crop=False, soft_wrap=True)
    spare = len(found.versions) - len({name.digest for name in found.names})
    room = f"{size(found.used_bytes)} of {size(found.max_bytes)} in {len(found.versions)} versions"
    session.out.print(f"{room}, {spare} of which no name points to", style="dim", soft_wrap=True)
    for problem_name, text in found.problems.items():
        session.out.print(f"{problem_name or 'settings'}: {text}", style="yellow", markup=False, soft_wrap=True)


@command.command("show")
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), default=None, help="Number of a former version.")
@_registry_options
@click.pass_obj
def show(session: Session, /, name: str, version: int | None, as_json: bool, **where: Any) -> None:
    """Show what NAME points to."""
    with _connect(**where) as registry:
        found = registry.resolve(name, version or 0)
    data = {"name": name, "version": found.version, **_as_data(found.adapter)}
    if as_json:
        _print_json(data)
        return
    for field, value in data.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        session.out.print(f"{field:<16} {text}", markup=False, soft_wrap=True)


@command.command("fetch")
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--version", type=click.IntRange(min=1), default=None, help="Number of a former version.")
@_registry_options
@click.pass_obj
def fetch(session: Session, /, name: str, folder: Path, version: int | None, as_json: bool, **where: Any) -> None:
    """Copy the files of NAME, or of a digest, into FOLDER; what is there already of them is not sent again."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with _connect(**where) as registry:
        adapter = _find(registry, name, version)
        with Progress(*columns, console=session.err, disable=as_json, transient=True) as bar:
            task = bar.add_task(name[:40], total=adapter.num_bytes)
            registry.fetch(adapter, folder, lambda num_bytes: bar.advance(task, num_bytes))
    if as_json:
        _print_json({"name": name, "folder": str(folder), **_as_data(adapter)})
    else:
        session.out.print(f"{folder}: {_describe(adapter)}", markup=False, soft_wrap=True)


@command.command("remove")
@click.argument("name")
@_registry_options
@click.pass_context
def remove(ctx: click.Context, /, name: str, as_json: bool, **where: Any) -> None:
    """Take NAME away. Its versions stay until their room is needed. Exits 1 when there is no such name."""
    session: Session = ctx.obj
    with _connect(**where) as registry:
        removed = registry.remove(name)
    if as_json:
        _print_json({"name": name, "removed": removed})
    else:
        session.out.print(f"{name} is gone" if removed else f"there is no {name}", markup=False, soft_wrap=True)
    ctx.exit(0 if removed else 1)


def _find(registry: LoraAdmin, name: str, version: int | None) -> pb.AdapterVersion:
    if not _DIGEST.fullmatch(name):
        return registry.resolve(name, version or 0).adapter
    found = registry.list().versions.get(name)
    if found is None:
        raise NotFound(f"no version {name} is kept")
    return found


def _describe(adapter: pb.AdapterVersion) -> str:
    modules = ", ".join(adapter.target_modules)
    return f"{adapter.digest[:16]}, rank {adapter.rank}, {adapter.dtype}, {size(adapter.num_bytes)}, of {modules}"


def _time(adapter: pb.AdapterVersion) -> str:
    return datetime.fromtimestamp(adapter.published_unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _as_data(adapter: pb.AdapterVersion) -> dict[str, Any]:
    return {
        "digest": adapter.digest,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "scaling": adapter.scaling,
        "target_modules": list(adapter.target_modules),
        "dtype": adapter.dtype,
        "num_parameters": adapter.num_parameters,
        "num_bytes": adapter.num_bytes,
        "base_model": adapter.base_model.name,
        "min_num_layers": adapter.base_model.min_num_layers,
        "published": _time(adapter),
        "uri": adapter.uri,
        **{f"sha256_{FILE_NAMES[facts.file].partition('.')[0]}": facts.sha256.hex() for facts in adapter.files},
    }


def _print_json(data: dict[str, Any]) -> None:
    click.echo(msgspec.json.encode(data))


@contextmanager
def _connect(endpoint: str, timeout_s: float) -> Iterator[LoraAdmin]:
    """Raises CommandFailed naming the registry that does not answer, or saying what it refuses or does not have."""
    with LoraAdmin(endpoint, timeout_s=timeout_s) as registry:
        try:
            yield registry
        except NoAnswer as error:
            raise CommandFailed(f"no LoRA registry answers at {endpoint}; give --endpoint") from error
        except (InvalidArgument, NotFound, ResourceExhausted, Unavailable) as error:
            raise CommandFailed(error.message) from error
