"""`shoal explain`: why a request went where it went, and what came of it."""

from __future__ import annotations

import dataclasses
import datetime

import click
import msgspec
from rich.table import Table

from shoal.client import AttemptExplanation, Client, Explanation, NotFound
from shoal.client.cli.failures import CommandFailed
from shoal.client.cli.session import Session, endpoint_options


@click.command("explain")
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, since an id can be used more than once.")
@endpoint_options
@click.pass_obj
def command(session: Session, request_id: str, as_json: bool) -> None:
    """Say why the request REQUEST_ID went where it went, and what came of it.

    The id is in every answer: request_id in `shoal generate --json`, the header x-request-id over HTTP. Gateways
    remember the last few thousand requests; any of them can be asked.
    """
    with Client(session.find_endpoint(), api_key=session.api_key) as client:
        try:
            found = client.explain(request_id, timeout_s=session.timeout_s)
        except NotFound as error:
            raise CommandFailed(error.message) from error
    if as_json:
        click.echo(msgspec.json.encode([dataclasses.asdict(explanation) for explanation in found]))
        return
    for number, explanation in enumerate(found):
        if number:
            session.out.print()
        _show(session, explanation)


def _show(session: Session, explanation: Explanation) -> None:
    _print_facts(session, _request_facts(explanation))
    for number, attempt in enumerate(explanation.attempts, start=1):
        session.out.print(f"\nAttempt {number}: {_what_happened(attempt)}", style="bold", markup=False, soft_wrap=True)
        _print_facts(session, _attempt_facts(attempt))
        if attempt.candidates:
            session.out.print()
            session.out.print(_candidates(attempt))
        hidden = attempt.num_candidates - len(attempt.candidates)
        if hidden:
            session.out.print(f"and {hidden} more", style="dim")


def _request_facts(explanation: Explanation) -> list[tuple[str, str]]:
    arrived = datetime.datetime.fromtimestamp(explanation.arrived_unix_s).astimezone()
    outcome = f"{explanation.code}, {explanation.completion_tokens:,} tokens" if explanation.code else "still running"
    facts = [
        ("request", explanation.request_id),
        ("arrived", f"{arrived:%Y-%m-%d %H:%M:%S} at gateway {explanation.gateway}"),
        ("asked", f"{explanation.prompt_tokens:,} prompt tokens of {explanation.model or 'no model'}"),
        ("ended", outcome + (f", after {_seconds(explanation.total_s)}" if explanation.total_s is not None else "")),
    ]
    if explanation.num_completions > 1:
        facts[2] = (facts[2][0], f"{facts[2][1]}, {explanation.num_completions} completions")
    if explanation.dispatch_s is not None:
        queue = "" if explanation.queue_s is None else f", {_seconds(explanation.queue_s)} of it in the queue"
        facts.append(("waited", f"{_seconds(explanation.dispatch_s)} before it was sent to a worker{queue}"))
    if explanation.ttft_s is not None:
        facts.append(("first token", f"after {_seconds(explanation.ttft_s)}"))
    if explanation.regret_s is not None:
        rest = "later than" if explanation.regret_s > 0 else "better than"
        facts.append(("regret", f"{_seconds(explanation.regret_s)}: {rest} predicted for the best other worker"))
    return facts


def _what_happened(attempt: AttemptExplanation) -> str:
    to = f"to {attempt.worker}" if attempt.worker else "wherever Envoy chose"
    return f"sent {to} after {_seconds(attempt.picked_s)} ({attempt.reason})"


def _attempt_facts(attempt: AttemptExplanation) -> list[tuple[str, str]]:
    facts = []
    if attempt.elsewhere:
        facts.append(("Envoy", f"went to {attempt.worker} instead of {attempt.endpoints[0]}"))
    predicted, actual = attempt.predicted_cached_tokens_at_worker, attempt.cached_tokens
    facts.append(
        ("cached", f"predicted {predicted:,}, actual {'not known' if actual is None else f'{actual:,}'} tokens")
    )
    if attempt.predicted_ttft_s is not None or attempt.ttft_s is not None:
        facts.append(("TTFT", f"predicted {_seconds(attempt.predicted_ttft_s)}, actual {_seconds(attempt.ttft_s)}"))
    if attempt.lost:
        facts.append(("moved on", f"{attempt.lost}, after {attempt.delivered_tokens:,} tokens: {attempt.error}"))
    return facts


def _candidates(attempt: AttemptExplanation) -> Table:
    """Prices in milliseconds; parts that are nothing for everybody are left out."""
    candidates = attempt.candidates
    names = [name for name in candidates[0].terms if any(round(c.terms.get(name, 0.0), 4) for c in candidates)]
    table = Table(box=None, pad_edge=False)
    table.add_column("candidate", no_wrap=True)
    for name in (
        "cached",
        "requests",
        "waiting",
        *(f"{name}\nms" for name in names),
        *(["total\nms"] if names else []),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for candidate in candidates:
        mark = "*" if candidate.worker == attempt.worker else " "
        total_s = sum(candidate.terms.values())
        prices_s = [candidate.terms.get(name, 0.0) for name in names] + ([total_s] if names else [])
        counts = (candidate.cached_tokens, candidate.num_requests, candidate.num_waiting_tokens)
        prices = [f"{price_s * 1e3:.1f}" for price_s in prices_s]
        table.add_row(f"{mark} {candidate.worker}", *(f"{count:,}" for count in counts), *prices)
    return table


def _print_facts(session: Session, facts: list[tuple[str, str]]) -> None:
    for name, fact in facts:
        session.out.print(f"{name:<12} {fact}", markup=False, soft_wrap=True)


def _seconds(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value * 1e3:.1f} ms" if abs(value) < 1 else f"{value:.2f} s"
