"""The GPU's attention by itself: 32 query and 8 KV heads of 128, bfloat16, pages of 64 in random order.

Each number is the median of nine replays of a CUDA graph that goes through page sets of 300 MB in all, so that pages do
not come from the second-level cache (50 MB).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from gpu_timing import graph_us, read_gb_per_s
from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.paged_attention import AttentionOptions, AttentionPlan, AttentionShape, paged_attention
from shoal.kernels.paged_attention.gpu_plan import describe_pages, plan_decode, plan_mixed

PAGE = 64
HEAD_DIM = 128
NUM_HEADS, NUM_KV_HEADS = 32, 8
KV_BYTES = 2 * NUM_KV_HEADS * HEAD_DIM * 2
"""Of one token in one layer."""
COLD_BYTES = 300e6

DECODE = (
    *((n, 160) for n in (1, 32, 128, 256)),
    *((n, 256) for n in (1, 32, 128, 256)),
    *((n, 512) for n in (1, 32, 128, 256)),
    *((n, 1024) for n in (1, 8, 32, 128, 256)),
    *((n, 8192) for n in (1, 8, 32, 128)),
    *((n, 32768) for n in (1, 8, 32, 128)),
)
PREFILL = ((1, 512), (1, 2048), (1, 8192), (1, 32768), (4, 2048), (32, 512))
EXTEND = ((64, 8192), (64, 32768), (512, 8192), (2048, 32768))
"""(new, cached)."""

Sequence2 = tuple[int, int]
"""(query tokens, tokens with KV)."""


class Cache:
    """Random keys and values of one layer, and the plans over them."""

    def __init__(
        self, num_pages: int, num_heads: int = NUM_HEADS, num_kv_heads: int = NUM_KV_HEADS, head_dim: int = HEAD_DIM
    ) -> None:
        layout = RowsLayout(1, num_kv_heads, head_dim, PAGE, torch.bfloat16)
        self._shape = AttentionShape(layout, num_heads)
        self._cache = layout.allocate(num_pages)
        for first in range(0, num_pages, 4096):
            self._cache[first : first + 4096].normal_()
        self._pages = describe_pages(self._cache, self._shape)
        self._options = AttentionOptions(head_dim**-0.5)
        self._generator = np.random.default_rng(0)

    def call(self, sequences: Sequence[Sequence2], *, decodes: bool) -> Callable[[], torch.Tensor]:
        """Attention of some sequences over pages drawn at random."""
        counts, lengths = (np.array(column, np.int32) for column in zip(*sequences, strict=True))
        num_pages = -(-lengths // PAGE)
        table = np.zeros((len(sequences), num_pages.max()), np.int32)
        drawn = self._generator.permutation(self._cache.shape[0])[: num_pages.sum()]
        table[np.arange(num_pages.max())[None, :] < num_pages[:, None]] = drawn
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        on_device = [torch.from_numpy(array).cuda() for array in (starts, lengths, table, np.arange(len(table)))]
        plan = self._plan(starts, lengths, on_device, decodes=decodes)
        layout = self._shape.layout
        width = (self._shape.num_heads + 2 * layout.num_kv_heads) * layout.head_dim
        qkv = torch.randn((int(starts[-1]), width), device="cuda").bfloat16()
        return lambda: paged_attention(qkv, self._cache[:, 0], plan, self._options)

    def _plan(
        self, starts: np.ndarray, lengths: np.ndarray, on_device: Sequence[torch.Tensor], *, decodes: bool
    ) -> AttentionPlan:
        query_starts, seq_lens, tables, rows = on_device
        if decodes:
            return plan_decode(self._shape, self._pages, query_starts, seq_lens, tables, rows.int())
        return plan_mixed(self._shape, self._pages, starts, lengths, tables, rows.int())


def measure_attention() -> Iterator[tuple[str, float, str]]:
    """(name, value, unit) of every shape."""
    yield "read ceiling", read_gb_per_s(), "GB/s"
    cache = Cache(128 * 32768 // PAGE)
    for count, length in DECODE:
        num_sets = max(1, min(16, int(COLD_BYTES // (count * length * KV_BYTES)) + 1))
        calls = [cache.call([(1, length)] * count, decodes=True) for _ in range(num_sets)]
        microseconds = graph_us(calls * max(1, 8 // num_sets))
        yield f"decode attention {count} x {length}", count * length * KV_BYTES / microseconds / 1e3, "GB/s"
    for count, length in PREFILL:
        call = cache.call([(length, length)] * count, decodes=False)
        microseconds = graph_us([call] * (4 if length <= 8192 else 1), 5)
        yield (
            f"prefill attention {count} x {length}",
            count * causal_flops(length, length) / microseconds / 1e6,
            "TFLOP/s",
        )
    for new, cached in EXTEND:
        calls = [cache.call([(new, new + cached)], decodes=False) for _ in range(4)]
        yield f"attention {new} over {cached}", graph_us(calls), "us"


def causal_flops(new: int, total: int) -> float:
    """Of two products over the keys that each query sees."""
    return 4 * NUM_HEADS * HEAD_DIM * (new * (total - new) + new * (new + 1) / 2)
