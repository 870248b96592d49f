"""What to send and when. The same seed gives the same workload."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shoal.client.bench.records import Prompt
from shoal.rpc.errors import InvalidArgument

MAX_PROMPTS_FILE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts, uniform over [low, high]; the mean is the middle."""

    low: int
    high: int

    def draw(self, rng: np.random.Generator) -> int:
        """One of them."""
        return int(rng.integers(self.low, self.high, endpoint=True))


def parse_lengths(text: str, field: str) -> Lengths:
    """`128`, or `64:192` for a range. Raises InvalidArgument."""
    low, _, high = text.partition(":")
    try:
        lengths = Lengths(int(low), int(high or low))
    except ValueError:
        lengths = Lengths(0, 0)
    if not 1 <= lengths.low <= lengths.high:
        raise InvalidArgument(field, f"{text!r} is no length; give tokens such as 128, or a range such as 64:192")
    return lengths


def random_prompts(num: int, input_len: Lengths, output_len: Lengths, vocab_size: int, seed: int) -> list[Prompt]:
    """Prompts of random token ids: nothing is shared, so the prefix cache does not help."""
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(num):
        ids = rng.integers(0, vocab_size, size=input_len.draw(rng))
        prompts.append(Prompt(output_len.draw(rng), token_ids=tuple(ids.tolist())))
    return prompts


def read_prompts(path: Path, num: int, output_len: Lengths, seed: int) -> list[Prompt]:
    """The first `num` prompts of a file, from its start again if it holds fewer.

    `.jsonl`: one object a line with `prompt` (text), `token_ids` or `messages`, and optionally `max_tokens`. Anything
    else: one text a line. Raises InvalidArgument naming the line.
    """
    if path.stat().st_size > MAX_PROMPTS_FILE_BYTES:
        raise InvalidArgument("prompts", f"{path} is larger than {MAX_PROMPTS_FILE_BYTES >> 20} MiB")
    rng = np.random.default_rng(seed)
    lines = [(i, line) for i, line in enumerate(path.read_text().splitlines(), 1) if line.strip()][:num]
    if not lines:
        raise InvalidArgument("prompts", f"{path} holds no prompt")
    as_json = path.suffix == ".jsonl"
    read = [_parse_line(path, i, line, output_len.draw(rng)) if as_json else None for i, line in lines]
    prompts = [parsed or Prompt(output_len.draw(rng), text=line) for parsed, (_, line) in zip(read, lines, strict=True)]
    return [prompts[i % len(prompts)] for i in range(num)]


def poisson_arrivals(num: int, rate_per_s: float, seed: int) -> list[float]:
    """When to send each request, in seconds from the start: a Poisson process, the first request at 0."""
    if not rate_per_s > 0:
        raise InvalidArgument("request_rate", f"{rate_per_s} is not a rate: give requests per second above 0, or inf")
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, size=max(0, num - 1))
    return [0.0, *np.cumsum(gaps).tolist()][:num]


def _parse_line(path: Path, number: int, line: str, max_tokens: int) -> Prompt:
    def refuse(problem: str) -> InvalidArgument:
        return InvalidArgument("prompts", f"{path}, line {number}: {problem}")

    try:
        value: Any = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise refuse(str(error)) from error
    inputs = [key for key in ("prompt", "token_ids", "messages") if isinstance(value, dict) and key in value]
    if len(inputs) != 1:
        raise refuse("needs an object with exactly one of prompt, token_ids and messages")
    fields: dict[str, Any] = {"max_tokens": value.get("max_tokens", max_tokens)}
    fields["text" if inputs == ["prompt"] else inputs[0]] = value[inputs[0]]
    try:
        return msgspec.convert(fields, Prompt)
    except msgspec.ValidationError as error:
        raise refuse(str(error)) from error
