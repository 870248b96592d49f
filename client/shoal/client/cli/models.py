"""`shoal models`: lists what can be asked for."""

from __future__ import annotations

import dataclasses

import click
import msgspec
from rich.table import Table

from shoal.client import Client
from shoal.client.cli.session import Session, endpoint_options


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@endpoint_options
@click.pass_obj
def command(session: Session, as_json: bool) -> None:
    """List the models that can be asked for."""
    with Client(session.find_endpoint(), api_key=session.api_key) as client:
        models = client.models(timeout_s=session.timeout_s)
    if as_json:
        click.echo(msgspec.json.encode([dataclasses.asdict(model) for model in models]))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "context", "vocabulary", "chat", "workers"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for model in models:
        chat = "yes" if model.has_chat_template else "no"
        table.add_row(model.name, str(model.max_model_len), str(model.vocab_size), chat, str(model.ready_workers))
    session.out.print(table)
