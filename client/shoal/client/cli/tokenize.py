"""`shoal tokenize`: text to token ids, and back."""

from __future__ import annotations

import click
import msgspec

from shoal.client import Client
from shoal.client.cli.session import Session, endpoint_options, read_stdin, stdin_is_terminal


@click.command("tokenize")
@click.argument("text", required=False)
@click.option("--model", default="", help="The model's name.  [default: the only one]")
@click.option("--chat", is_flag=True, help="Render the text as a user's turn with the model's chat template first.")
@click.option("--no-special-tokens", is_flag=True, help="Leave out what the tokenizer adds, such as a start token.")
@click.option("--count", is_flag=True, help="Print only how many there are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@endpoint_options
@click.pass_obj
def command(
    session: Session, text: str | None, model: str, chat: bool, no_special_tokens: bool, count: bool, as_json: bool
) -> None:
    """Print the token ids of TEXT, or of what stdin holds."""
    if text is None and stdin_is_terminal():
        raise click.UsageError("give TEXT, or pipe it in")
    text = read_stdin() if text is None else text
    with Client(session.find_endpoint(), api_key=session.api_key) as client:
        ids = client.tokenize(
            None if chat else text,
            messages=[{"role": "user", "content": text}] if chat else None,
            model=model,
            add_special_tokens=not no_special_tokens,
            timeout_s=session.timeout_s,
        )
    if as_json:
        click.echo(msgspec.json.encode({"token_ids": ids, "count": len(ids)}))
    else:
        click.echo(len(ids) if count else " ".join(map(str, ids)))
