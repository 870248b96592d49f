"""What attention needs to know about a step, prepared once and used by every layer."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import DTYPE_CODES, NativeLibrary, library

if TYPE_CHECKING:
    from shoal.kernels.paged_attention.gpu_plan import Launch

_I32, _I64, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_ITEM_FIELDS = 10


class NativeStep(ctypes.Structure):
    """`attention_step` of attention.h, field by field."""

    _fields_ = (
        *((name, _POINTER) for name in ("query_starts", "seq_lens", "block_tables", "table_rows")),
        *((name, _POINTER) for name in ("items", "partials", "pending")),
        *((name, _I64) for name in ("table_stride", "q_stride", "out_stride")),
        *((name, _I64) for name in ("block_stride", "v_offset", "head_stride")),
        *((name, _I32) for name in ("num_seqs", "num_items", "num_heads", "num_kv_heads", "head_dim", "block_size")),
        *((name, _I32) for name in ("sliding_window", "dtype", "num_threads")),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What does not change between steps."""

    layout: KVLayout
    num_heads: int
    scale: float
    """Factor of q . k, usually head_dim ** -0.5."""
    sliding_window: int | None = None
    """A token sees itself and this many minus one before it; None: all."""

    def __post_init__(self) -> None:
        if self.num_heads % self.layout.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of {self.layout.num_kv_heads} KV heads")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, not {self.sliding_window}")

    @property
    def has_native(self) -> bool:
        """Whether the native kernel can take it: whole vectors, and a group of heads that fits in its tile."""
        layout, group = self.layout, self.num_heads // self.layout.num_kv_heads
        return layout.head_dim % 16 == 0 and layout.head_dim <= 256 and layout.block_size % 16 == 0 and group <= 96


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A step's sequences. Owns every buffer that `native` points to."""

    shape: AttentionShape
    query_starts: Tensor
    """[S + 1] int32: sequence s has the tokens query_starts[s]:query_starts[s + 1] of the flat batch."""
    seq_lens: Tensor
    """[S] int32: tokens with KV, those of this step included; they are the last ones."""
    block_tables: Tensor
    """[rows, blocks] int32."""
    table_rows: Tensor
    """[S] int32: the row of `block_tables` of each sequence."""
    native: NativeStep | None = None
    buffers: tuple[Tensor, ...] = ()
    launches: tuple[Launch, ...] = ()
    """On a GPU, instead of `native`; see gpu_plan."""

    @property
    def num_tokens(self) -> int:
        """Query tokens of the step."""
        return int(self.query_starts[-1])


def plan_attention(
    shape: AttentionShape, query_starts: Tensor, seq_lens: Tensor, block_tables: Tensor, table_rows: Tensor
) -> AttentionPlan:
    """Prepares a step. All tensors int32 and contiguous; seq_lens[s] >= the sequence's query tokens >= 1."""
    for name, tensor in (
        ("query_starts", query_starts),
        ("seq_lens", seq_lens),
        ("block_tables", block_tables),
        ("table_rows", table_rows),
    ):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32, not {tensor.dtype}")
    plan = AttentionPlan(shape, query_starts, seq_lens, block_tables, table_rows)
    native = library()
    if native is None or not shape.has_native or query_starts.device.type != "cpu":
        return plan
    return _plan_native(native, plan)


def _plan_native(native: NativeLibrary, plan: AttentionPlan) -> AttentionPlan:
    shape, layout = plan.shape, plan.shape.layout
    per_head = layout.block_size * layout.head_dim
    num_threads = torch.get_num_threads()
    step = NativeStep(
        query_starts=plan.query_starts.data_ptr(),
        seq_lens=plan.seq_lens.data_ptr(),
        block_tables=plan.block_tables.data_ptr(),
        table_rows=plan.table_rows.data_ptr(),
        table_stride=plan.block_tables.stride(0),
        q_stride=(shape.num_heads + 2 * layout.num_kv_heads) * layout.head_dim,
        out_stride=shape.num_heads * layout.head_dim,
        block_stride=2 * layout.num_layers * layout.num_kv_heads * per_head,
        v_offset=layout.num_kv_heads * per_head,
        head_stride=per_head,
        num_seqs=plan.seq_lens.shape[0],
        num_heads=shape.num_heads,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_size=layout.block_size,
        sliding_window=shape.sliding_window or 0,
        dtype=DTYPE_CODES[layout.dtype],
        num_threads=num_threads,
        scale=shape.scale,
    )
    address = ctypes.addressof(step)
    num_partials, num_groups = _I32(), _I32()
    counts = (ctypes.byref(num_partials), ctypes.byref(num_groups))
    num_items = native.plan_attention(address, None, 0, None, *counts)
    items = torch.empty(num_items, _ITEM_FIELDS, dtype=torch.int32)
    pending = torch.empty(num_groups.value, dtype=torch.int32)
    partials = torch.empty(num_partials.value, native.attention_max_rows * (layout.head_dim + 2))
    native.plan_attention(address, items.data_ptr(), num_items, pending.data_ptr(), *counts)
    step.items, step.pending, step.partials = items.data_ptr(), pending.data_ptr(), partials.data_ptr()
    step.num_items = num_items
    return AttentionPlan(
        shape, plan.query_starts, plan.seq_lens, plan.block_tables, plan.table_rows, step, (items, pending, partials)
    )
