"""`shoal bench replay`: a trace under several routing policies in virtual time, or on a live mesh."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal.client.bench.live_replay import replay_live
from shoal.client.bench.records import Prompt, Record
from shoal.client.bench.report import as_data, as_tables
from shoal.client.bench.statistics import summarize
from shoal.client.cli.failures import CommandFailed
from shoal.client.cli.session import Session, endpoint_options

if TYPE_CHECKING:
    from shoal.simulator.replay import Comparison
    from shoal.simulator.trace import TraceRequest

_VIRTUAL_ONLY = ("workers", "gateways", "load", "policies", "blocks", "kv_event_delay_ms", "rebalance", "plot_path")


@click.command("replay")
@click.option(
    "--trace",
    "trace_path",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Lines of timestamp (ms), input_length, output_length and hash_ids (of 512-token blocks); .gz is unpacked.",
)
@click.option("--virtual", is_flag=True, help="In this process, in virtual time, with simulated H100s.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many requests, from the trace's start.")
@click.option(
    "--speedup",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Send requests so much faster than in the trace.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the generated tokens.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the numbers to FILE.")
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Virtual: draw the comparison into FILE, a PNG (needs matplotlib).",
)
@click.option("--workers", type=click.IntRange(1, 1024), default=8, show_default=True, help="Virtual: how many.")
@click.option(
    "--gateways", type=click.IntRange(1, 64), default=1, show_default=True, help="Virtual: how many share the requests."
)
@click.option(
    "--load",
    type=click.FloatRange(min=0, max=10, min_open=True),
    help="Virtual: choose the speedup so that requests arrive at this fraction of the rate at which the workers serve "
    "the whole trace when it is handed over at once.",
)
@click.option("--policies", default="all", show_default=True, help="Virtual: names with commas between.")
@click.option("--blocks", type=click.IntRange(min=1), help="Virtual: KV blocks of a worker.  [default: the GPU's]")
@click.option(
    "--kv-event-delay-ms",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Virtual: from the end of a step until the router knows what it cached.",
)
@click.option("--rebalance", is_flag=True, help="Virtual: move requests by choice, as gateways do with policy shoal.")
@endpoint_options
@click.pass_context
def replay(
    ctx: click.Context, /, trace_path: Path, virtual: bool, json_path: Path | None, plot_path: Path | None, **flags: Any
) -> None:
    """Replay a trace: compare routing policies in virtual time, or measure a running endpoint."""
    from shoal.simulator.trace import read_trace

    session: Session = ctx.obj
    if not virtual:
        given = [name for name in _VIRTUAL_ONLY if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if given:
            flag = given[0].removesuffix("_path").replace("_", "-")
            raise click.UsageError(f"--{flag} needs --virtual")
    if plot_path is not None and find_spec("matplotlib") is None:
        raise CommandFailed("--plot needs matplotlib: pip install 'shoal[plot]'")
    trace = read_trace(trace_path, flags["limit"])
    settings = {"trace": trace_path.name, "virtual": virtual, "requests": len(trace), **flags}
    data = _virtual(session, trace, settings) if virtual else _live(session, trace, settings)
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(data)))
    if plot_path is not None:
        from shoal.client.bench.plot import plot_policies

        speedup = data["settings"]["speedup"]
        title = f"{trace_path.name}, {speedup:.2f} times as fast, on {flags['workers']} workers"
        plot_policies(plot_path, title, data["policies"], data["oracle"]["hit_ratio"])
    if num_errors := sum(policy["errors"] for policy in data["policies"].values()):
        raise CommandFailed(f"{num_errors} requests failed")


def _virtual(session: Session, trace: list[TraceRequest], settings: dict[str, Any]) -> dict[str, Any]:
    from shoal.simulator.mesh import MeshSettings
    from shoal.simulator.replay import compare, parse_policies

    defaults = MeshSettings()
    gpu = dataclasses.replace(defaults.gpu, num_blocks=settings["blocks"] or defaults.gpu.num_blocks)
    mesh = dataclasses.replace(
        defaults,
        num_workers=settings["workers"],
        num_gateways=settings["gateways"],
        gpu=gpu,
        speedup=settings["speedup"],
        kv_event_delay_s=settings["kv_event_delay_ms"] / 1e3,
        seed=settings["seed"],
        rebalance=settings["rebalance"],
    )
    with _progress(session) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(policy: str, num_done: int) -> None:
            if policy not in tasks:
                tasks[policy] = progress.add_task(policy, total=len(trace))
            progress.update(tasks[policy], completed=num_done)

        policies = parse_policies(settings["policies"])
        comparison = compare(trace, policies, mesh, load=settings["load"], on_progress=on_progress)
    session.out.print(comparison_table(comparison))
    return {
        "settings": settings | {"speedup": comparison.speedup},
        "oracle": {"hit_ratio": comparison.oracle_hit_ratio},
        "policies": {result.policy: dataclasses.asdict(result) for result in comparison.results},
    }


def comparison_table(comparison: Comparison) -> Table:
    """One row a policy, and what one cache for all would hit."""
    load = "" if comparison.load is None else f" ({comparison.load:.0%} of saturation)"
    num_requests = comparison.results[0].requests
    title = f"{num_requests} requests, {comparison.speedup:.2f} times as fast as in the trace{load}; times in s"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("policy", no_wrap=True)
    for name in ("hits", "of one", "TTFT", "p50", "p90", "E2E", "TPOT ms", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    oracle = comparison.oracle_hit_ratio
    for result in comparison.results:
        table.add_row(
            result.policy,
            f"{result.hit_ratio:.2%}",
            f"{result.hit_ratio / oracle:.0%}" if oracle else "-",
            *(f"{t:.3f}" for t in (result.ttft_mean_s, result.ttft_p50_s, result.ttft_p90_s, result.e2e_mean_s)),
            "-" if math.isnan(result.tpot_mean_s) else f"{result.tpot_mean_s * 1e3:.2f}",
            f"{result.errors}",
        )
    table.add_row("one cache", f"{oracle:.2%}", "100%", style="dim")
    return table


def _live(session: Session, trace: list[TraceRequest], settings: dict[str, Any]) -> dict[str, Any]:
    from shoal.simulator.trace import arrivals_s

    records: list[Record] = []

    def prompts(vocab_size: int) -> list[Prompt]:
        return [Prompt(r.output_length, token_ids=tuple(r.token_ids(vocab_size).tolist())) for r in trace]

    with _progress(session) as progress:
        task = progress.add_task("live", total=len(trace))

        def on_record(record: Record) -> None:
            records.append(record)
            progress.advance(task)

        arrivals = arrivals_s(trace, settings["speedup"])
        asyncio.run(replay_live(session, prompts, arrivals, on_record))
    summary = summarize(records)
    session.out.print(as_tables(summary))
    ttft_s, e2e_s = summary.ttft_s, summary.e2e_s
    live = {
        "hit_ratio": summary.cached_tokens / max(1, summary.prompt_tokens),
        "ttft_mean_s": ttft_s and ttft_s.mean,
        "ttft_p90_s": ttft_s and ttft_s.p90,
        "e2e_mean_s": e2e_s and e2e_s.mean,
        "requests": len(records),
        "errors": sum(summary.errors.values()),
    }
    return {"settings": settings, "policies": {"live": live}, "summary": as_data(summary, {})}


def _progress(session: Session) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=session.err, disable=not session.err.is_terminal)
