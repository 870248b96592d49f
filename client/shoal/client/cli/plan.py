"""`shoal plan`: prints what a manifest becomes on Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shoal.client.cli.failures import require_operator
from shoal.client.cli.session import debug_option


@click.command("plan")
@click.option(
    "-f", "--file", "path", required=True, type=click.Path(path_type=Path), help="The InferenceService manifest."
)
@click.option("-n", "--namespace", help="Where it would be.  [default: the manifest's, or default]")
@click.option("--image-prefix", default="shoal/", show_default=True, help="As the operator would be told.")
@click.option("--image-tag", default="0.1.0", show_default=True, help="The same.")
@debug_option
def command(path: Path, namespace: str | None, image_prefix: str, image_tag: str) -> None:
    """Print the Kubernetes objects that a manifest becomes, as YAML. Needs no cluster.

    The operator makes the same ones, with itself as their manager and the InferenceService as their owner, for a
    cluster that has LeaderWorkerSet, KEDA and Prometheus' operator; where these are missing it leaves out monitors, and
    says what else it cannot do.
    """
    api, _ = require_operator()
    import yaml

    from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Owner, Platform, find_infeasible, plan
    from shoal.operator.planner.kubernetes.platform import IMAGES

    service = load_for_kubernetes(api, path)
    images = {name: f"{image_prefix}{name}:{image_tag}" for name in IMAGES}
    platform = Platform(images=images, apis=OPTIONAL_APIS)
    problems = find_infeasible(service, platform)
    if problems:
        raise api.ManifestError(str(path), problems)
    owner = Owner(namespace=namespace or service.metadata.namespace or "default")
    click.echo(yaml.safe_dump_all(plan(service, platform, owner), sort_keys=False, width=120), nl=False)


def load_for_kubernetes(api: Any, path: Path) -> Any:
    """The manifest's InferenceService. Raises ManifestError also for what only Kubernetes cannot do."""
    from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions

    service = api.load_manifest(path)
    problems = find_kubernetes_contradictions(service)
    if problems:
        raise api.ManifestError(str(path), problems)
    return service
