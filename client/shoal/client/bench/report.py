"""Shows a summary as tables, and as plain data for `--json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Group
from rich.table import Table

from shoal.client.bench.statistics import Distribution, Summary

_METRICS = {
    "ttft": ("Time to first token", "ttft_s"),
    "itl": ("Inter-token latency", "itl_s"),
    "tpot": ("Time per output token", "tpot_s"),
    "e2e": ("End to end", "e2e_s"),
}


def as_tables(summary: Summary) -> Group:
    """For a terminal or a pipe."""
    totals = Table(box=None, show_header=False, pad_edge=False)
    totals.add_column(style="bold")
    totals.add_column(justify="right")
    totals.add_row("Completed requests", f"{summary.completed}")
    for code, count in sorted(summary.errors.items()):
        totals.add_row(f"Failed: {code}", f"{count}", style="red")
    totals.add_row("Duration", f"{summary.duration_s:.2f} s")
    totals.add_row("Prompt tokens", f"{summary.prompt_tokens} ({summary.cached_tokens} cached)")
    totals.add_row("Output tokens", f"{summary.output_tokens}")
    totals.add_row("Request throughput", f"{summary.requests_per_s:.2f} /s")
    totals.add_row("Output token throughput", f"{summary.output_tokens_per_s:.1f} /s")
    totals.add_row("Total token throughput", f"{summary.total_tokens_per_s:.1f} /s")
    if summary.goodput_requests_per_s is not None:
        totals.add_row("Goodput", f"{summary.goodput_requests_per_s:.2f} requests/s")
    latencies = Table(box=None, pad_edge=False, title="Latency in ms", title_justify="left")
    for name in ("", "mean", "p50", "p90", "p99"):
        latencies.add_column(name, justify="right" if name else "left")
    for title, attribute in _METRICS.values():
        value: Distribution | None = getattr(summary, attribute)
        cells = ["-"] * 4 if value is None else [f"{v * 1e3:.2f}" for v in dataclasses.astuple(value)[:4]]
        latencies.add_row(title, *cells)
    return Group(totals, "", latencies)


def as_data(summary: Summary, settings: dict[str, Any]) -> dict[str, Any]:
    """For `--json`: the summary with times in ms, and the settings of the run."""
    data: dict[str, Any] = {"settings": settings}
    for field in dataclasses.fields(summary):
        value = getattr(summary, field.name)
        if isinstance(value, Distribution):
            scaled = {key: v * 1e3 for key, v in dataclasses.asdict(value).items() if key != "count"}
            data[field.name.removesuffix("_s") + "_ms"] = scaled | {"count": value.count}
        else:
            data[field.name] = dict(value) if field.name == "errors" else value
    return data
