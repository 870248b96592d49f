"""`shoal bench`, and its `serve`: measures a running endpoint. What the numbers mean is in `shoal.client.bench`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shoal.client import AsyncClient, InvalidArgument, RetryPolicy
from shoal.client.bench.backends import Backend, GrpcBackend, OpenAiBackend, RequestOptions
from shoal.client.bench.driver import Load, drive
from shoal.client.bench.records import Prompt, Record
from shoal.client.bench.report import as_data, as_tables
from shoal.client.bench.statistics import summarize
from shoal.client.bench.workload import parse_lengths, poisson_arrivals, random_prompts, read_prompts
from shoal.client.cli.bench_replay import replay
from shoal.client.cli.failures import CommandFailed
from shoal.client.cli.session import Session, endpoint_options
from shoal.client.endpoint import parse_endpoint

MAX_CONCURRENCY = 4096
MAX_REQUESTS = 1_000_000
_SLO_UNITS_S = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The flags of a run, as they stand in the `--json` file."""

    backend: str
    model: str | None
    num_prompts: int
    concurrency: int
    request_rate: float | None
    input_len: str
    output_len: str
    prompts: str | None
    temperature: float
    ignore_eos: bool
    seed: int
    warmup: int
    slo: str | None


@click.group("bench")
def command() -> None:
    """Measure a running endpoint, or a simulated mesh."""


command.add_command(replay)


@command.command("serve")
@click.option("--backend", type=click.Choice(["grpc", "openai"]), default="grpc", show_default=True)
@click.option("--model", help="The model's name.  [default: the only one]")
@click.option("--num-prompts", type=click.IntRange(1, MAX_REQUESTS), default=64, show_default=True)
@click.option(
    "--concurrency",
    type=click.IntRange(1, MAX_CONCURRENCY),
    default=8,
    show_default=True,
    help="Most requests at once.",
)
@click.option(
    "--request-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Send so many requests a second, as a Poisson process.  [default: as fast as places get free]",
)
@click.option("--input-len", default="128", show_default=True, help="Tokens of random prompts: 128, or 64:192.")
@click.option("--output-len", default="64", show_default=True, help="Tokens to generate: 64, or 32:96.")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False),
    help="Prompts from FILE: .jsonl with prompt, token_ids or messages, else one text a line.",
)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@click.option("--ignore-eos", is_flag=True, help="Generate the full length.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of lengths, ids and arrivals.")
@click.option(
    "--warmup",
    type=click.IntRange(0, 1000),
    default=2,
    show_default=True,
    help="Requests before measuring; their prompts are not used again.",
)
@click.option("--slo", help="Objectives for goodput: ttft, itl, tpot, e2e, such as ttft=200ms,itl=50ms.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the numbers to FILE.")
@endpoint_options
@click.pass_context
def serve(ctx: click.Context, /, json_path: Path | None, **flags: Any) -> None:
    """Send prompts to a running endpoint and report latencies and rates."""
    settings = Settings(**flags)
    slo = parse_slo(settings.slo)
    records: list[Record] = []
    session: Session = ctx.obj
    interrupted = False
    try:
        asyncio.run(_run(session, settings, records))
    except KeyboardInterrupt:
        interrupted = True
    if not records:
        raise KeyboardInterrupt
    summary = summarize(records, slo)
    session.out.print(as_tables(summary))
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(as_data(summary, msgspec.to_builtins(settings)))))
    if interrupted:
        raise KeyboardInterrupt
    if summary.errors:
        raise CommandFailed(f"{sum(summary.errors.values())} of {len(records)} requests failed")


def parse_slo(text: str | None) -> dict[str, float]:
    """`ttft=200ms,itl=50ms` to limits in seconds. Raises InvalidArgument."""
    limits: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = part.strip().partition("=")
        unit = "ms" if value.endswith("ms") else "s"
        try:
            limit_s = float(value.removesuffix(unit)) * _SLO_UNITS_S[unit]
        except ValueError:
            limit_s = 0.0
        if name not in ("ttft", "itl", "tpot", "e2e") or not value.endswith(unit) or not limit_s > 0:
            raise InvalidArgument("slo", f"{part!r}: give ttft, itl, tpot or e2e with a time, such as ttft=200ms")
        limits[name] = limit_s
    return limits


async def _run(session: Session, settings: Settings, records: list[Record]) -> None:
    async with _connected(session, settings) as (backend, vocab_size):
        warmup = _prompts(settings, settings.warmup, settings.seed + 1, vocab_size)
        prompts = _prompts(settings, settings.num_prompts, settings.seed, vocab_size)
        arrivals = (
            poisson_arrivals(len(prompts), settings.request_rate, settings.seed) if settings.request_rate else None
        )
        await drive(backend, warmup, Load(concurrency=settings.concurrency), _refuse_failure)
        columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=session.err, disable=not session.err.is_terminal) as progress:
            task = progress.add_task("requests", total=len(prompts))

            def on_record(record: Record) -> None:
                records.append(record)
                progress.advance(task)

            await drive(backend, prompts, Load(concurrency=settings.concurrency, arrivals_s=arrivals), on_record)


@contextlib.asynccontextmanager
async def _connected(session: Session, settings: Settings) -> AsyncIterator[tuple[Backend, int]]:
    """The backend and the model's vocabulary size, which the gateway knows whichever protocol is measured."""
    endpoint = parse_endpoint(session.find_endpoint())
    retry = RetryPolicy(max_attempts=1)
    async with AsyncClient(endpoint.url, api_key=session.api_key, timeout_s=session.timeout_s, retry=retry) as client:
        models = {model.name: model for model in await client.models()}
        if settings.model is None and len(models) != 1:
            raise CommandFailed(f"choose a model with --model; there are {', '.join(sorted(models)) or 'none'}")
        name = settings.model or next(iter(models))
        model = models[name] if name in models else await client.model(name)  # an unknown one: the gateway's words
        options = RequestOptions(
            model=model.name,
            temperature=settings.temperature,
            ignore_eos=settings.ignore_eos,
            timeout_s=session.timeout_s,
        )
        if settings.backend == "grpc":
            yield GrpcBackend(client, options), model.vocab_size
            return
        headers = {"authorization": f"Bearer {session.api_key}"} if session.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.concurrency)
        async with httpx.AsyncClient(
            base_url=endpoint.url, headers=headers, limits=limits, trust_env=not endpoint.is_loopback
        ) as http:
            yield OpenAiBackend(http, options), model.vocab_size


def _prompts(settings: Settings, num: int, seed: int, vocab_size: int) -> list[Prompt]:
    output_len = parse_lengths(settings.output_len, "output_len")
    if num == 0:
        return []
    if settings.prompts is not None:
        return read_prompts(Path(settings.prompts), num, output_len, seed)
    return random_prompts(num, parse_lengths(settings.input_len, "input_len"), output_len, vocab_size, seed)


def _refuse_failure(record: Record) -> None:
    if record.error_code is not None:
        raise CommandFailed(f"a warm-up request failed with {record.error_code}; see the gateway's log")
