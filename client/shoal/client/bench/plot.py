"""Draws a comparison of policies. Importing it needs matplotlib, which only the extra `plot` brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_policies(path: Path, title: str, policies: Mapping[str, Mapping[str, Any]], oracle_hit_ratio: float) -> None:
    """A PNG with three panels: hit ratio, time to first token, time to the end. Raises OSError."""
    names = list(policies)
    figure = Figure(figsize=(12, 1.2 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    hits, first_tokens, ends = figure.subplots(1, 3, sharey=True)
    places = range(len(names))
    hits.barh(places, [policies[name]["hit_ratio"] for name in names], color="tab:green")
    hits.axvline(oracle_hit_ratio, color="black", linestyle="--", label="one cache")
    hits.set_xlabel("hit ratio")
    hits.legend()
    for key, label, offset, color in (
        ("ttft_p90_s", "p90", 0.2, "tab:cyan"),
        ("ttft_mean_s", "mean", -0.2, "tab:blue"),
    ):
        values = [policies[name][key] for name in names]
        first_tokens.barh([place + offset for place in places], values, height=0.4, label=label, color=color)
    first_tokens.set_xlabel("time to first token, s")
    first_tokens.legend()
    ends.barh(places, [policies[name]["e2e_mean_s"] for name in names], color="tab:orange")
    ends.set_xlabel("end to end, mean, s")
    hits.set_yticks(list(places), names)
    hits.invert_yaxis()
    figure.savefig(path, format="png", dpi=120)
