"""`shoal crd`: prints the CustomResourceDefinition."""

from __future__ import annotations

import click

from shoal.client.cli.failures import require_operator
from shoal.client.cli.session import debug_option


@click.command("crd")
@debug_option
def command() -> None:
    """Print the CustomResourceDefinition of InferenceServices as YAML.

    For kubectl apply --server-side -f -.
    """
    require_operator()
    import yaml

    from shoal.operator.api.crd import custom_resource_definition

    click.echo(yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=120), nl=False)
