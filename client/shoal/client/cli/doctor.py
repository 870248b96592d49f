"""`shoal doctor`: what is wrong with a cluster and what it serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from shoal.client.cli.cluster import ask_cluster, cluster_options, namespace_of
from shoal.client.cli.failures import CommandFailed, require_operator
from shoal.client.cli.session import Session, debug_option

_STYLES = {"problem": "bold red", "warning": "yellow", "unknown": "dim", "ok": "green"}


@click.command("doctor")
@click.argument("name", required=False)
@click.option(
    "--operator-account",
    metavar="NAMESPACE/NAME",
    help="The operator's ServiceAccount, whose rights are checked.  [default: that of the chart's operator]",
)
@cluster_options
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    name: str | None,
    operator_account: str | None,
    kubeconfig: Path | None,
    namespace: str | None,
    all_namespaces: bool,
    output: str,
) -> None:
    """Check a cluster, and the InferenceService NAME or all there are.

    Says what is wrong, the likeliest cause first, and what to do about it. Reads what kubectl reads, changes nothing,
    and needs no operator. Exits 1 if there is a problem.
    """
    require_operator()
    from shoal.operator.diagnosis import collect, diagnose

    account = _account_of(operator_account)
    where = namespace_of(kubeconfig, namespace, all_namespaces)
    facts = ask_cluster(kubeconfig, lambda api: collect(api, where, name, account))
    if name is not None and not facts.unreachable and not facts.services and "services" not in facts.refused:
        raise CommandFailed(
            f"there is no InferenceService {name} in {where or 'any namespace'}; `shoal status` lists them"
        )
    findings = diagnose(facts)
    if output == "json":
        click.echo(msgspec.json.encode([dataclasses.asdict(finding) for finding in findings]))
    else:
        _show(ctx.obj, findings)
    if any(finding.verdict == "problem" for finding in findings):
        ctx.exit(1)


def _account_of(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    namespace, _, account = text.partition("/")
    if not namespace or not account:
        raise click.BadParameter(f"{text!r} is not NAMESPACE/NAME", param_hint="--operator-account")
    return namespace, account


def _show(session: Session, findings: Sequence[Any]) -> None:
    for finding in findings:
        about = f"{finding.service} {finding.check}".strip()
        session.out.print(finding.verdict.ljust(8), style=_STYLES[finding.verdict], end="", markup=False)
        session.out.print(f"{about}: {finding.message}", markup=False, soft_wrap=True)
        if finding.remedy:
            session.out.print(f"{'':8}-> {finding.remedy}", markup=False, soft_wrap=True)
    count = sum(finding.verdict == "problem" for finding in findings)
    told = {0: "no problem found", 1: "1 problem"}.get(count, f"{count} problems, the likeliest cause first")
    session.out.print(f"\n{told}", style="bold" if count else "green")
