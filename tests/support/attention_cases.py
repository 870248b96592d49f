"""Random paged attention problems whose unused cache slots hold NaN, on the device of their layout's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.paged_attention import AttentionOptions, AttentionPlan, AttentionShape, plan_attention

LAYER = 1
"""The layer that cases read, of two: a wrong layer offset reads NaN."""


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """The arguments of `paged_attention`."""

    qkv: Tensor
    cache: Tensor
    plan: AttentionPlan
    options: AttentionOptions

    @property
    def layer_cache(self) -> Tensor:
        return self.cache[:, LAYER]

    @property
    def arguments(self) -> tuple[Tensor, Tensor, AttentionPlan, AttentionOptions]:
        return self.qkv, self.layer_cache, self.plan, self.options


def make_case(
    shape: AttentionShape,
    sequences: list[tuple[int, int]],
    *,
    window: int | None = None,
    soft_cap: float | None = None,
    has_sinks: bool = False,
    seed: int = 0,
    poison: float = float("nan"),
) -> AttentionCase:
    """sequences: (query tokens, KV length). Blocks are scattered over the cache, table rows shuffled."""
    generator = torch.Generator().manual_seed(seed)
    layout = shape.layout
    counts = [-(-length // layout.block_size) for _, length in sequences]
    cache = layout.allocate(sum(counts) + 3).fill_(poison)
    device = cache.device
    free = torch.randperm(cache.shape[0], generator=generator).int()
    rows = torch.randperm(len(sequences) + 2, generator=generator)[: len(sequences)].int()
    # Entries past a sequence's blocks are poison as well: following one would crash or read another block.
    tables = torch.full((len(sequences) + 2, max(counts) + 1), 2**30, dtype=torch.int32)
    for (_, length), count, row in zip(sequences, counts, rows.tolist(), strict=True):
        tables[row, :count], free = free[:count], free[count:]
        slots = slots_of(tables[row], torch.arange(length), layout)
        k, v = (_normal((length, layout.num_kv_heads, layout.head_dim), layout.dtype, generator) for _ in range(2))
        layout.write(cache[:, LAYER], slots.to(device), k.to(device), v.to(device))
    starts = torch.tensor([0, *(queries for queries, _ in sequences)]).cumsum(0).int()
    lengths = torch.tensor([length for _, length in sequences], dtype=torch.int32)
    width = (shape.num_heads + 2 * layout.num_kv_heads) * layout.head_dim
    qkv = _normal((int(starts[-1]), width), layout.dtype, generator)
    plan = plan_attention(shape, *(tensor.to(device) for tensor in (starts, lengths, tables, rows)))
    sinks = _normal((shape.num_heads,), torch.float32, generator).to(device) * 2 if has_sinks else None
    options = AttentionOptions(layout.head_dim**-0.5, window, soft_cap, sinks)
    return AttentionCase(qkv.to(device), cache, plan, options)


def slots_of(table: Tensor, positions: Tensor, layout: KVLayout) -> Tensor:
    """The cache slots of some positions of a sequence."""
    return table[positions // layout.block_size].long() * layout.block_size + positions % layout.block_size


def _normal(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)
