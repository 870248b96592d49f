"""Sampling flags of `generate` and `chat`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from shoal.client import Completion, Options

_F = TypeVar("_F", bound=Callable[..., Any])
_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option("--model", help="The model's name.  [default: the only one]"),
    click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate.  [default: what fits]"),
    click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.  [default: 1]"),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Nucleus sampling.  [default: 1, off]"),
    click.option("--top-k", type=click.IntRange(min=0), help="Most likely tokens to keep.  [default: 0, all]"),
    click.option("--min-p", type=click.FloatRange(0, 1), help="Least share of the best token's probability."),
    click.option("--frequency-penalty", type=click.FloatRange(-2, 2)),
    click.option("--presence-penalty", type=click.FloatRange(-2, 2)),
    click.option("--repetition-penalty", type=click.FloatRange(0, 2, min_open=True)),
    click.option("--seed", type=click.IntRange(min=0), help="Makes the answer repeatable."),
    click.option("--stop", multiple=True, help="Text that ends the answer. May be repeated."),
    click.option("--ignore-eos", is_flag=True, default=None, help="Go on after the end-of-sequence token."),
)


def sampling_options(command: _F) -> _F:
    """Adds the flags; the command takes them as keyword arguments and hands them to `as_options`."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def as_options(flags: dict[str, Any], timeout_s: float) -> Options:
    """Those flags that were given."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    return cast(Options, given | {"timeout_s": timeout_s})


def facts(answer: Completion) -> str:
    """One line about an answer: size, speed, cache, worker."""
    usage = answer.usage
    parts = [f"{usage.completion_tokens} tokens"]
    if answer.ttft_s is not None:
        parts.append(f"first after {answer.ttft_s * 1e3:.0f} ms")
    if answer.itl_s:
        parts.append(f"then {1 / answer.itl_s:.1f} tokens/s")
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached")
    if answer.worker:
        parts.append(answer.worker)
    if answer.finish_reason not in (None, "stop"):
        parts.append(f"ended by {answer.finish_reason}")
    return " · ".join(parts)
