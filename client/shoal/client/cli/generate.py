"""`shoal generate`: continues a text."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
import msgspec

from shoal.client import Client, Completion, Options
from shoal.client.cli.sampling import as_options, facts, sampling_options
from shoal.client.cli.session import Session, endpoint_options, read_stdin, stdin_is_terminal


@click.command("generate")
@click.argument("prompt", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--token-ids", help="A prompt of token ids, such as 1,2,3, instead of text.")
@click.option("--n", type=click.IntRange(1, 64), help="Independent answers.  [default: 1]")
@click.option("--logprobs", type=click.IntRange(0, 20), help="With --json: log-probabilities, and this many rivals.")
@sampling_options
@endpoint_options
@click.pass_obj
def command(session: Session, /, prompt: str | None, as_json: bool, token_ids: str | None, **flags: Any) -> None:
    """Continue PROMPT, or what stdin holds. Streams as it is generated.

    For conversations, with the model's chat template, see `shoal chat`.
    """
    if prompt is not None and token_ids is not None:
        raise click.UsageError("give PROMPT or --token-ids, not both")
    ids = _parse_ids(token_ids) if token_ids is not None else None
    if ids is None and prompt in (None, "-"):
        if prompt is None and stdin_is_terminal():
            raise click.UsageError("give PROMPT, or pipe one in")
        prompt = read_stdin()
    options = as_options(flags, session.timeout_s)
    with Client(session.find_endpoint(), api_key=session.api_key) as client:
        if as_json or flags["n"]:
            answer = client.generate(prompt, token_ids=ids, **options)
        else:
            answer = _stream(session, client, prompt, ids, options)
    if as_json:
        click.echo(msgspec.json.encode(as_data(answer)))
    elif flags["n"]:
        for choice in answer.choices:
            session.out.print(f"[{choice.index}]", style="bold", markup=False)
            click.echo(choice.text)


def _stream(
    session: Session, client: Client, prompt: str | None, ids: list[int] | None, options: Options
) -> Completion:
    with client.stream(prompt, token_ids=ids, **options) as stream:
        for chunk in stream:
            click.echo(chunk.text, nl=False)
        click.echo()
        answer = stream.completion()
    if session.out.is_terminal:
        session.err.print(facts(answer), style="dim", markup=False)
    return answer


def as_data(answer: Completion) -> dict[str, Any]:
    """The object that `--json` prints. `choices` and `logprobs` appear when there is something in them."""
    data: dict[str, Any] = {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "usage": dataclasses.asdict(answer.usage),
        "ttft_s": answer.ttft_s,
        "itl_s": answer.itl_s,
        "worker": answer.worker,
        "model": answer.model,
        "request_id": answer.request_id,
    }
    if answer.logprobs:
        data["logprobs"] = [dataclasses.asdict(position) for position in answer.logprobs]
    if len(answer.choices) > 1:
        data["choices"] = [dataclasses.asdict(choice) for choice in answer.choices]
    return data


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: give whole numbers, such as 1,2,3", param_hint="--token-ids") from error
