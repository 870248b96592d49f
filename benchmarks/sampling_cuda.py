"""The GPU's sampling by itself, beside torch's operations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gpu_timing import Call, Ceilings
from operations_cuda import Timing, time_operation
from shoal.kernels.sampling import (
    FILTERED,
    GREEDY,
    PENALIZED,
    SLOT_DTYPE,
    SLOT_WORDS,
    SamplingState,
    SamplingWorkspace,
    sample,
)

ROWS = (1, 32, 256)
VOCAB_SIZES = (128_256, 151_936)
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class Kind:
    """Parameters that every row has, and what each token of the vocabulary costs at least."""

    name: str
    fields: dict[str, float] = field(default_factory=dict)
    is_flat: bool = False
    """Logits of which a filter keeps tens of thousands; otherwise it keeps a few."""
    bytes_read: int = 4
    bytes_written: int = 0


KINDS = (
    Kind("greedy", {"flags": GREEDY}),
    Kind("temperature", {"temperature": 0.8}),
    Kind("top_p", {"flags": FILTERED, "top_p": 0.9}),
    Kind("top_p, flat", {"flags": FILTERED, "top_p": 0.9}, is_flat=True),
    Kind("top_k", {"flags": FILTERED, "top_k": 50}),
    Kind("penalties", {"flags": GREEDY | PENALIZED, "frequency_penalty": 0.5}, bytes_read=6, bytes_written=4),
)


def measure_sampling(ceilings: Ceilings) -> Iterator[Timing]:
    """Every kind at every size. Up to 32 rows are in the second-level cache, where a step's product has left them."""
    for vocab_size, rows, kind in itertools.product(VOCAB_SIZES, ROWS, KINDS):
        logits = make_logits(rows, vocab_size, kind)
        yield time_operation(
            f"sample {kind.name}, {rows} x {vocab_size}",
            [make_call(logits, kind)] * 4,
            [[_make_peer(logits, kind)] * 4],
            ceilings,
            bytes_read=kind.bytes_read * logits.numel(),
            bytes_written=kind.bytes_written * logits.numel(),
        )


def make_logits(rows: int, vocab_size: int, kind: Kind) -> Tensor:
    """Normally distributed; unless flat, with twenty likely tokens."""
    logits = torch.randn((rows, vocab_size), device="cuda")
    if not kind.is_flat:
        logits[:, torch.randperm(vocab_size, device="cuda")[:20]] += 12.0
    return logits


def make_call(logits: Tensor, kind: Kind, chunk: int | None = None) -> Call:
    """One step's sampling. chunk: as `SamplingWorkspace.allocate` takes it."""
    rows, vocab_size = logits.shape
    state = SamplingState.allocate(rows, vocab_size, logits.device)
    packed = np.zeros(rows, SLOT_DTYPE)
    for name, value in {**NEUTRAL, **kind.fields}.items():
        packed[name] = value
    packed["seed"] = np.arange(rows)
    state.slots.copy_(torch.from_numpy(packed.view(np.int32).reshape(rows, SLOT_WORDS)))
    slots = torch.arange(rows, device=logits.device, dtype=torch.int32)
    workspace = SamplingWorkspace.allocate(rows, vocab_size, logits.device, chunk)
    return lambda: sample(logits, slots, state, workspace)


def _make_peer(logits: Tensor, kind: Kind) -> Call:
    """By torch's operations, drawing as an exponential race where they draw (as `torch.multinomial` does inside)."""

    def draw(scaled: Tensor) -> Tensor:
        probabilities = scaled.softmax(-1)
        return probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(-1)

    def top_p() -> Tensor:
        values, ids = logits.sort(-1, descending=True)
        sums = values.softmax(-1).cumsum(-1)
        kept = values.masked_fill_(sums - values.softmax(-1) > 0.9, float("-inf"))
        return ids.gather(-1, draw(kept)[:, None])

    def top_k() -> Tensor:
        values, ids = logits.topk(50, -1)
        return ids.gather(-1, draw(values)[:, None])

    counts = torch.zeros(logits.shape, dtype=torch.int16, device=logits.device)
    calls: dict[str, Call] = {
        "greedy": lambda: logits.argmax(-1),
        "temperature": lambda: draw(logits / 0.8),
        "top_p": top_p,
        "top_p, flat": top_p,
        "top_k": top_k,
        "penalties": lambda: (logits - 0.5 * counts).argmax(-1),
    }
    return calls[kind.name]
