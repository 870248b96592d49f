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
    workers = "1 worker" if spec.workers.replicas == 1 else f"{spec.workers.replicas} workers"
    session.out.print(
        f"{path}: valid. {service.metadata.name} serves {spec.model.name} with {workers} on {spec.workers.device}.",
        markup=False,
        soft_wrap=True,
    )
