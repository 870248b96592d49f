"""`shoal validate`: checks a manifest."""

from __future__ import annotations

from pathlib import Path

import click

from shoal.client.cli.failures import require_operator
from shoal.client.cli.plan import load_for_kubernetes
from shoal.client.cli.session import Session, debug_option


@click.command("validate")
@click.option(
    "-f", "--file", "path", required=True, type=click.Path(path_type=Path), help="The InferenceService manifest."
)
@click.option("--kubernetes", is_flag=True, help="Also what only Kubernetes cannot do.")
@debug_option
@click.pass_obj
def command(session: Session, path: Path, kubernetes: bool) -> None:
    """Check a manifest and list everything that is wrong with it."""
    api, _ = require_operator()
    service = load_for_kubernetes(api, path) if kubernetes else api.load_manifest(path)
    spec = service.spec
    roles = api.worker_roles(spec)
    counts = [f"{role.replicas} {'' if role.name == 'both' else f'{role.name} '}" for role in roles]
    workers = f"{'and '.join(counts)}worker{'' if sum(role.replicas for role in roles) == 1 else 's'}"
    session.out.print(
        f"{path}: valid. {service.metadata.name} serves {spec.model.name} with {workers} on {spec.workers.device}.",
        markup=False,
        soft_wrap=True,
    )
