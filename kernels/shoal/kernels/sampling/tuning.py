"""How the GPU's sampling kernels are built, by the size of the vocabulary."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from shoal.kernels.tuning import gpu_of, load_entries, require_powers_of_two


@dataclass(frozen=True, slots=True)
class SamplingTuning:
    """For which vocabularies, and how they are read."""

    max_vocab_size: int | None
    """null: any."""
    chunk: int
    """Tokens that one program of the first pass reads: with 4,096 and 4 warps 16 KiB, 8 loads of 16 bytes a thread.
    Filters that keep no more than a chunk are cheap."""
    read_num_warps: int
    choose_num_warps: int
    """16 are many: a filtered row is read by one program, as fast as one multiprocessor can."""
    filter_width: int
    """Tokens that a filter's passes read at once."""

    def __post_init__(self) -> None:
        require_powers_of_two(
            chunk=self.chunk,
            read_num_warps=self.read_num_warps,
            choose_num_warps=self.choose_num_warps,
            filter_width=self.filter_width,
        )


@functools.cache
def choose(device: torch.device, vocab_size: int) -> SamplingTuning:
    """The entry for a vocabulary. Not by rows: a row's token must not depend on how many others there are."""
    for entry in load_entries("sampling", gpu_of(device), SamplingTuning):
        if vocab_size <= (entry.max_vocab_size or vocab_size):
            return entry
    raise LookupError(f"no sampling tuning for a vocabulary of {vocab_size}")
