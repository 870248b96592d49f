"""`shoal validate`: checks manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shoal.client.cli.app import EXIT_FAILURE
from shoal.client.cli.failures import require_operator
from shoal.client.cli.manifests import load_all, manifest_options
from shoal.client.cli.session import Session, debug_option


@click.command("validate")
@manifest_options
@click.option("--kubernetes", is_flag=True, help="Also what only Kubernetes cannot do.")
@debug_option
@click.pass_context
def command(ctx: click.Context, paths: tuple[Path, ...], more: tuple[Path, ...], kubernetes: bool) -> None:
    """Check manifests and list everything that is wrong with them, and what to know of those that are allowed.

    A file may hold several. Exits 1 if any is wrong.
    """
    api, _ = require_operator()
    from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions

    session: Session = ctx.obj
    find_more = find_kubernetes_contradictions if kubernetes else lambda service: []
    found, all_right = load_all(session, api, (*paths, *more), kubernetes=kubernetes, find_more=find_more)
    for each in found:
        session.out.print(f"{each.path}: {_summary(api, each.service)}", markup=False, soft_wrap=True)
    if not all_right:
        ctx.exit(EXIT_FAILURE)


def _summary(api: Any, service: Any) -> str:
    spec, roles = service.spec, api.worker_roles(service.spec)
    counts = [f"{role.replicas} {'' if role.name == 'both' else f'{role.name} '}" for role in roles]
    workers = f"{'and '.join(counts)}worker{'' if sum(role.replicas for role in roles) == 1 else 's'}"
    return f"valid. {service.metadata.name} serves {spec.model.name} with {workers} on {spec.workers.device}."
