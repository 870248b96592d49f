"""`shoal up`: runs a manifest on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from shoal.client.cli.failures import require_operator
from shoal.client.cli.progress import MeshProgress
from shoal.client.cli.running import RunningMesh, recorded
from shoal.client.cli.session import Session, debug_option

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_INTERRUPTED = 130


@click.command("up")
@click.option(
    "-f", "--file", "path", required=True, type=click.Path(path_type=Path), help="The InferenceService manifest."
)
@click.option("--log-dir", type=click.Path(path_type=Path, file_okay=False), help="Keep the components' logs here.")
@debug_option
@click.pass_context
def command(ctx: click.Context, path: Path, log_dir: Path | None) -> None:
    """Run a manifest on this machine.

    Stays until Ctrl-C or SIGTERM, then finishes the running requests and ends with 0. A second Ctrl-C ends everything
    at once. Interrupted before everything was up, or twice, it ends with 130.
    """
    api, substrate = require_operator()
    service = api.load_manifest(path)
    ctx.exit(asyncio.run(_serve(ctx.obj, service, substrate, log_dir)))


async def _serve(session: Session, service: Any, substrate: Any, log_dir: Path | None) -> int:
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            session.err.print("finishing what runs; once more to end at once", style="dim")
        mesh.request_stop()

    with MeshProgress(session.out) as progress:
        mesh = substrate.LocalMesh(service, on_event=progress.on_event, handle_signals=False, log_dir=log_dir)
        with _handled(on_signal):
            try:
                async with mesh:
                    progress.finish()
                    name = service.spec.model.name
                    with recorded(RunningMesh(service.metadata.name, mesh.endpoint, os.getpid(), mesh.kv_store)):
                        show_endpoints(session, mesh.endpoint, name, needs_key=service.spec.gateway.auth is not None)
                        await mesh.wait()
            except substrate.MeshInterrupted:
                return EXIT_INTERRUPTED
    return EXIT_INTERRUPTED if signals > 1 else 0


def show_endpoints(session: Session, endpoint: str, model: str, *, needs_key: bool) -> None:
    """Prints where the mesh is and lines to paste."""
    out = session.out
    out.print()
    out.print(f"[bold]gRPC[/]    {endpoint}   (shoal.api.gateway.v1.GatewayService)")
    out.print(f"[bold]OpenAI[/]  http://{endpoint}/v1")
    out.print()
    for line in paste_lines(endpoint, model, needs_key=needs_key):
        click.echo(f"  {line}")
    out.print()
    out.print("Ctrl-C stops it.", style="dim")


def paste_lines(endpoint: str, model: str, *, needs_key: bool) -> list[str]:
    """Commands that work as they stand (with SHOAL_API_KEY set if `needs_key`)."""
    messages = [{"role": "user", "content": "Why is the sea salty?"}]
    key = ' -H "authorization: Bearer $SHOAL_API_KEY"' if needs_key else ""
    body = _json({"model": model, "messages": messages, "max_tokens": 64, "stream": True})
    call = _json({"model": model, "chat": {"messages": messages}, "sampling": {"maxTokens": 64}})
    return [
        f"shoal chat --endpoint {endpoint}",
        f"curl -N http://{endpoint}/v1/chat/completions -H 'content-type: application/json'{key} -d {body}",
        f"grpcurl -plaintext{key} -d {call} {endpoint} shoal.api.gateway.v1.GatewayService/Generate",
    ]


def _json(value: object) -> str:
    return shlex.quote(msgspec.json.encode(value).decode())


@contextlib.contextmanager
def _handled(callback: Callable[[], None]) -> Iterator[None]:
    """`callback` runs in the loop for each signal that asks to stop."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
