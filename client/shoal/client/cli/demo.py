"""`shoal demo`: starts a mesh, talks to it over both protocols, shows what it did, stops it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from rich.table import Table

from shoal.client import AsyncClient
from shoal.client.bench.backends import RequestOptions, openai_request, output_of, server_sent_events
from shoal.client.bench.records import Prompt, Record
from shoal.client.cli.failures import CommandFailed, require_operator
from shoal.client.cli.progress import MeshProgress
from shoal.client.cli.session import Session, debug_option

_GRPC_QUESTION = "Explain to a child in two sentences why the sea is salty."
_HTTP_QUESTION = "Explain to a child in two sentences why the sky is blue."
_MAX_TOKENS = 48
_TIMEOUT_S = 120.0
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class _Row:
    """One request of the demo."""

    title: str
    record: Record


@click.command("demo")
@click.option(
    "-f", "--file", "path", required=True, type=click.Path(path_type=Path), help="The InferenceService manifest."
)
@debug_option
@click.pass_context
def command(ctx: click.Context, path: Path) -> None:
    """Start a mesh, chat over gRPC and over HTTP, print a table, stop."""
    api, substrate = require_operator()
    service = api.load_manifest(path)
    ctx.exit(asyncio.run(_show(ctx.obj, service, substrate)))


async def _show(session: Session, service: Any, substrate: Any) -> int:
    with MeshProgress(session.out) as progress:
        try:
            async with substrate.LocalMesh(service, on_event=progress.on_event) as mesh:
                progress.finish()
                return await _unless_stopped(mesh, _talk(session, mesh.endpoint, service.spec.model.name))
        except substrate.MeshInterrupted:
            return EXIT_INTERRUPTED


async def _unless_stopped(mesh: Any, talk: Any) -> int:
    talking, stopped = asyncio.ensure_future(talk), asyncio.ensure_future(mesh.wait())
    try:
        await asyncio.wait({talking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not talking.done():
            return EXIT_INTERRUPTED
        talking.result()
        return 0
    finally:
        talking.cancel()
        stopped.cancel()
        await asyncio.gather(talking, stopped, return_exceptions=True)


async def _talk(session: Session, endpoint: str, model: str) -> None:
    async with (
        AsyncClient(endpoint, timeout_s=_TIMEOUT_S) as client,
        httpx.AsyncClient(base_url=f"http://{endpoint}", timeout=_TIMEOUT_S, trust_env=False) as http,
    ):
        rows = [_Row("gRPC", await _ask_grpc(session, client, model, "gRPC"))]
        rows.append(_Row("HTTP (OpenAI)", await _ask_http(session, http, model)))
        rows.append(_Row("gRPC, repeated", await _ask_grpc(session, client, model, "gRPC, again")))
    session.out.print(_table(rows))


async def _ask_grpc(session: Session, client: AsyncClient, model: str, title: str) -> Record:
    _show_question(session, title, _GRPC_QUESTION)
    clock = asyncio.get_running_loop().time
    start_s, times_s = clock(), []
    messages = [{"role": "user", "content": _GRPC_QUESTION}]
    async with client.chat_stream(messages, model=model, max_tokens=_MAX_TOKENS, temperature=0) as stream:
        async for chunk in stream:
            if chunk.token_ids:
                times_s.append(clock())
            click.echo(chunk.text, nl=False)
        usage = (await stream.completion()).usage
    click.echo("\n")
    return Record(
        start_s=start_s,
        end_s=clock(),
        output_times_s=tuple(times_s),
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


async def _ask_http(session: Session, http: httpx.AsyncClient, model: str) -> Record:
    _show_question(session, "HTTP", _HTTP_QUESTION)
    clock = asyncio.get_running_loop().time
    prompt = Prompt(_MAX_TOKENS, messages=({"role": "user", "content": _HTTP_QUESTION},))
    path, body = openai_request(prompt, RequestOptions(model=model))
    start_s, times_s = clock(), []
    usage: dict[str, Any] = {}
    async with http.stream("POST", path, json=body) as response:
        if response.status_code != httpx.codes.OK:
            text = (await response.aread()).decode(errors="replace")
            raise CommandFailed(f"POST {path} answered {response.status_code}: {text[:500]}")
        async for event in server_sent_events(response):
            text = "".join(output_of(choice) for choice in event.get("choices", ()))
            if text:
                times_s.append(clock())
            click.echo(text, nl=False)
            usage = event.get("usage") or usage
    click.echo("\n")
    return Record(
        start_s=start_s,
        end_s=clock(),
        output_times_s=tuple(times_s),
        prompt_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
    )


def _show_question(session: Session, title: str, question: str) -> None:
    session.out.print(f"[bold]{title}[/]  {question}")


def _table(rows: list[_Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("request")
    for name in ("first token", "per token", "tokens/s", "tokens", "prompt", "cached"):
        table.add_column(name, justify="right")
    for row in rows:
        record = row.record
        tpot_s = record.tpot_s
        table.add_row(
            row.title,
            "-" if record.ttft_s is None else f"{record.ttft_s * 1e3:.0f} ms",
            "-" if tpot_s is None else f"{tpot_s * 1e3:.1f} ms",
            "-" if not tpot_s else f"{1 / tpot_s:.1f}",
            str(record.output_tokens),
            str(record.prompt_tokens),
            str(record.cached_tokens),
        )
    return table
