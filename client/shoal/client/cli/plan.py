"""`shoal plan`: prints what manifests become on Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shoal.client.cli.app import EXIT_FAILURE
from shoal.client.cli.failures import CommandFailed, require_operator
from shoal.client.cli.manifests import load_all, manifest_options
from shoal.client.cli.session import debug_option


@click.command("plan")
@manifest_options
@click.option("-n", "--namespace", help="Where it would be.  [default: the manifest's, or default]")
@click.option("--image-prefix", default="shoal/", show_default=True, help="As the operator would be told.")
@click.option("--image-tag", default="0.1.0", show_default=True, help="The same.")
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[Path, ...],
    more: tuple[Path, ...],
    namespace: str | None,
    image_prefix: str,
    image_tag: str,
) -> None:
    """Print the Kubernetes objects that manifests become, as YAML. Needs no cluster.

    The operator makes the same ones, with itself as their manager and the InferenceService as their owner, for a
    cluster that has LeaderWorkerSet, KEDA and Prometheus' operator; where these are missing it leaves out monitors, and
    says what else it cannot do.
    """
    api, _ = require_operator()
    import yaml

    from shoal.operator.api.kubernetes_rules import find_kubernetes_contradictions
    from shoal.operator.planner.kubernetes import OPTIONAL_APIS, Owner, Platform, find_infeasible, plan
    from shoal.operator.planner.kubernetes.platform import IMAGES

    images = {name: f"{image_prefix}{name}:{image_tag}" for name in IMAGES}
    platform = Platform(images=images, apis=OPTIONAL_APIS)

    def find_more(service: Any) -> list[Any]:
        return find_kubernetes_contradictions(service) or find_infeasible(service, platform)

    found, all_right = load_all(ctx.obj, api, (*paths, *more), kubernetes=True, find_more=find_more)
    if not all_right:
        ctx.exit(EXIT_FAILURE)
    objects: list[Any] = []
    planned: dict[tuple[str, str], Path] = {}
    for each in found:
        owner = Owner(namespace=namespace or each.service.metadata.namespace or "default")
        identity = owner.namespace, each.service.metadata.name
        if identity in planned:
            where = planned[identity]
            raise CommandFailed(
                f"{each.path}: InferenceService {identity[1]} of {identity[0]} is given twice, first in {where}; give "
                "each a metadata.name of its own, or one file at a time"
            )
        planned[identity] = each.path
        objects += plan(each.service, platform, owner)
    click.echo(yaml.safe_dump_all(objects, sort_keys=False, width=120), nl=False)
