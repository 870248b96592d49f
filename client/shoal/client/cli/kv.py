"""`shoal kv`: looks into a KV store, verifies it, drains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
import msgspec
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.client.cli.failures import CommandFailed
from shoal.client.cli.running import find_running
from shoal.client.cli.service_options import service_options
from shoal.client.cli.session import Session
from shoal.client.kv_admin import KvAdmin
from shoal.rpc.errors import Unauthenticated, Unavailable

DEFAULT_ENDPOINT: Final = "127.0.0.1:50054"
MIN_LIST_WIDTH: Final = 120
"""Columns of `ls`, which a narrower terminal wraps: half a key is no key."""
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group("kv")
def command() -> None:
    """Look into a KV store, verify it, drain it."""


_store_options = service_options(
    click.option("--token", envvar="SHOAL_KV_TOKEN", help="Of the operator or a tenant.  [env: SHOAL_KV_TOKEN]"),
    click.option(
        "--socket",
        "socket_path",
        envvar="SHOAL_KV_SOCKET",
        default="",
        help="Unix socket of the store, in place of an endpoint.  [env: SHOAL_KV_SOCKET]",
    ),
    click.option(
        "--endpoint",
        envvar="SHOAL_KV_ENDPOINT",
        default="",
        help="host:port of the store.  [env: SHOAL_KV_ENDPOINT; default: that of the mesh that runs here, or "
        f"{DEFAULT_ENDPOINT}]",
    ),
    timeout_s=600.0,
)
"""As `_connect` takes them."""


_tenant_option = click.option("--tenant", default="", help="Only this tenant's blocks.")


@command.command("stats")
@_tenant_option
@_store_options
@click.pass_obj
def stats(session: Session, /, tenant: str, as_json: bool, **where: Any) -> None:
    """Show how full the store is, what it was asked, and what went wrong."""
    with _connect(**where) as store:
        found = store.stats(tenant)
    if as_json:
        _print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("tier", "blocks", "used", "of"):
        table.add_column(name, justify="left" if name == "tier" else "right")
    table.add_row("memory", f"{found.num_memory_blocks:,}", size(found.used_memory_bytes), size(found.memory_bytes))
    if found.disk_bytes:
        table.add_row("disk", f"{found.num_disk_blocks:,}", size(found.used_disk_bytes), size(found.disk_bytes))
    session.out.print(table)
    facts = [
        ("visible", f"{found.num_blocks:,} blocks"),
        ("in use", f"{found.num_leased:,} leased, {size(found.pinned_bytes)} pinned, {found.num_sessions:,} clients"),
        ("hits", _hit_ratio(found)),
        ("disk", found.disk_problem),
        ("huge pages", _huge_pages(found)),
        *(("problem", problem) for problem in found.problems),
        ("state", "draining: it takes no more blocks" if found.draining else ""),
        *((f"peer {peer.address}", f"{peer.num_pulled:,} blocks came. {peer.problem}") for peer in found.peers),
    ]
    session.out.print()
    for name, fact in facts:
        if fact:
            session.out.print(f"{name:<12} {fact}", markup=False, soft_wrap=True)
    if found.counters:
        session.out.print()
        for name, num in sorted(found.counters.items()):
            if num:
                session.out.print(f"{name:<28} {num:>14,}", markup=False)


def _huge_pages(found: pb.StatsResponse) -> str:
    return f"{found.huge_pages}: {found.huge_pages_problem}" if found.huge_pages_problem else found.huge_pages


@command.command("ls")
@_tenant_option
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Most blocks; 0 for all.")
@_store_options
@click.pass_obj
def ls(session: Session, /, tenant: str, limit: int, as_json: bool, **where: Any) -> None:
    """List blocks: whose, how large, where they are, who holds them."""
    with _connect(**where) as store:
        if as_json:
            for block in store.blocks(tenant, limit):
                _print_json(block)
            return
        blocks = list(store.blocks(tenant, limit))
    table = Table(box=None, pad_edge=False)
    for name in ("key", "parent", "tenant", "fingerprint", "size", "tiers", "leases", "pins", "idle"):
        table.add_column(name, justify="right" if name in ("size", "leases", "pins", "idle") else "left", no_wrap=True)
    for block in blocks:
        tiers = " ".join(name for name, there in (("memory", block.in_memory), ("disk", block.on_disk)) if there)
        table.add_row(
            block.key.hex(), block.parent_key.hex()[:8] or "-", block.tenant, block.fingerprint.hex()[:8],
            size(block.num_bytes), tiers, str(block.num_leases), str(block.num_pins), f"{block.idle_s} s",
        )  # fmt: skip
    out = session.out
    if out.width < MIN_LIST_WIDTH:
        out = Console(file=out.file, width=MIN_LIST_WIDTH, highlight=False)
    out.print(table, crop=False, soft_wrap=True)
    if limit and len(blocks) == limit:
        session.out.print(f"the first {limit}; --limit 0 shows all", style="dim")


@command.command("verify")
@_tenant_option
@click.option(
    "--max-rate", "max_mib_per_s", type=click.IntRange(min=1), default=1024, show_default=True, help="MiB a second."
)
@_store_options
@click.pass_context
def verify(ctx: click.Context, /, tenant: str, max_mib_per_s: int, as_json: bool, **where: Any) -> None:
    """Read every block of memory and disk and compare checksums; what is wrong goes.

    Exits 1 when something was wrong.
    """
    session: Session = ctx.obj
    last = pb.VerifyResponse()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[read]}"), TimeElapsedColumn())
    with _connect(**where) as store, Progress(*columns, console=session.err, disable=as_json, transient=True) as bar:
        task = bar.add_task("verifying", total=None, read="")
        for last in store.verify(tenant, max_mib_per_s << 20):
            bar.update(task, total=last.num_blocks, completed=last.num_done, read=size(last.num_bytes))
    if as_json:
        _print_json(last)
    else:
        right = f"{last.num_memory_verified:,} copies in memory and {last.num_disk_verified:,} on disk are right"
        session.out.print(f"{last.num_done:,} blocks, {size(last.num_bytes)} read: {right}", soft_wrap=True)
        if last.num_unread:
            session.out.print(f"{last.num_unread:,} copies could not be read: they moved meanwhile, or the disk failed")
        if last.num_wrong:
            session.out.print(f"{last.num_wrong:,} copies were wrong and are gone", style="bold red")
    if not last.done:
        raise CommandFailed("the store ended before all was read")
    ctx.exit(1 if last.num_wrong else 0)


@command.command("drain")
@click.option("--for", "drain_s", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
              help="Longest time for writing to disk, in seconds.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Take blocks again instead.")
@_store_options
@click.pass_context
def drain(ctx: click.Context, /, drain_s: float, resume: bool, as_json: bool, **where: Any) -> None:
    """Let the store take no more blocks, and write those in memory to disk.

    It goes on answering what it has. Exits 1 when blocks are left that are in memory only.
    """
    session: Session = ctx.obj
    last = pb.DrainResponse(done=True)
    with _connect(**where) as store:
        if resume:
            store.resume()
        else:
            with session.err.status("draining") as status:
                for last in store.drain(drain_s):
                    status.update(f"draining: {last.num_unwritten:,} blocks to write, {last.num_reserved:,} reserved")
    if as_json:
        _print_json(last)
    elif resume:
        session.out.print("the store takes blocks again")
    else:
        is_drained = last.done and not last.problem
        text = "drained: everything is on disk" if is_drained else f"not drained: {last.problem or 'the store ended'}"
        session.out.print(text, style=None if is_drained else "yellow", markup=False, soft_wrap=True)
    ctx.exit(1 if last.problem or not last.done else 0)


def size(num_bytes: int) -> str:
    """For people."""
    value, unit = float(num_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{num_bytes} B"


def _hit_ratio(found: pb.StatsResponse) -> str:
    counters = found.counters
    memory, disk, misses = (counters.get(name, 0) for name in ("hits_memory", "hits_disk", "misses"))
    asked = memory + disk + misses
    return f"{memory / asked:.1%} memory, {disk / asked:.1%} disk, {misses / asked:.1%} missed" if asked else ""


def _print_json(message: Message) -> None:
    click.echo(msgspec.json.encode(_as_data(message)))


def _as_data(message: Message) -> dict[str, Any]:
    """Every field by its name in the proto; bytes in hexadecimal."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, bytes):
            data[field.name] = value.hex()
        elif isinstance(value, Mapping):
            data[field.name] = dict(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            data[field.name] = [_as_data(each) for each in value]
        else:
            data[field.name] = value
    return data


def _running_store() -> str:
    """Of the mesh that runs here; empty when none does that has one. Raises CommandFailed when several do."""
    running = [mesh for mesh in find_running() if mesh.kv_store]
    if len(running) > 1:
        names = ", ".join(f"{mesh.kv_store} ({mesh.name})" for mesh in running)
        raise CommandFailed(f"{len(running)} KV stores run here; choose one with --endpoint: {names}")
    return running[0].kv_store if running else ""


@contextmanager
def _connect(endpoint: str, socket_path: str, token: str | None, timeout_s: float) -> Iterator[KvAdmin]:
    """Raises CommandFailed naming the store that does not answer."""
    if endpoint and socket_path:
        raise CommandFailed("give --endpoint or --socket, not both")
    place = socket_path or endpoint or _running_store() or DEFAULT_ENDPOINT
    with KvAdmin(endpoint=place, socket_path=socket_path, token=token, timeout_s=timeout_s) as store:
        try:
            yield store
        except Unavailable as error:
            raise CommandFailed(f"no KV store answers at {place}; give --endpoint or --socket") from error
        except Unauthenticated as error:
            raise CommandFailed(f"{error.message}: give it with --token or SHOAL_KV_TOKEN") from error
