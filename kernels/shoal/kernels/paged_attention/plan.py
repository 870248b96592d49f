"""What attention needs to know about a step, prepared once and used by every layer."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoal.kernels.kv_layout import KVLayout
from shoal.kernels.native import DTYPE_CODES, library
from shoal.kernels.paged_attention.options import AttentionOptions

if TYPE_CHECKING:
    from shoal.kernels.paged_attention.gpu_plan import DecodeLaunch, PiecesLaunch

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
    """What changes neither between steps nor between layers."""

    layout: KVLayout
    num_heads: int

    def __post_init__(self) -> None:
        if self.num_heads % self.layout.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of {self.layout.num_kv_heads} KV heads")

    @property
    def has_native(self) -> bool:
        """Whether the native kernel can take it: whole vectors, and a group of heads that fits in its tile."""
        layout, group = self.layout, self.num_heads // self.layout.num_kv_heads
        return layout.head_dim % 16 == 0 and layout.head_dim <= 256 and layout.block_size % 16 == 0 and group <= 96


@dataclass(frozen=True, slots=True)
class NativePlan:
    """A step's work items for layers of one scale and window. Owns every buffer that `step` points to."""

    step: NativeStep
    buffers: tuple[Tensor, ...]

    @property
    def address(self) -> int:
        """Of the `attention_step`."""
        return ctypes.addressof(self.step)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A step's sequences, for every layer whatever its options."""

    shape: AttentionShape
    query_starts: Tensor
    """[S + 1] int32: sequence s has the tokens query_starts[s]:query_starts[s + 1] of the flat batch."""
    seq_lens: Tensor
    """[S] int32: tokens with KV, those of this step included; they are the last ones."""
    block_tables: Tensor
    """[rows, blocks] int32."""
    table_rows: Tensor
    """[S] int32: the row of `block_tables` of each sequence."""
    has_native: bool = False
    """Whether the native kernel takes plain layers."""
    launches: tuple[DecodeLaunch | PiecesLaunch, ...] = ()
    """On a GPU, instead of native plans; see gpu_plan."""
    _native_plans: dict[tuple[float, int], NativePlan] = field(default_factory=dict, repr=False, compare=False)
    """By scale and window (0: none), each made when a layer first asks for it."""

    @property
    def num_tokens(self) -> int:
        """Query tokens of the step."""
        return int(self.query_starts[-1])

    def native(self, options: AttentionOptions) -> NativePlan | None:
        """What the native kernel needs for a layer with these options; None if it cannot take it."""
        if not self.has_native or not options.is_plain:
            return None
        key = (options.scale, options.sliding_window or 0)
        found = self._native_plans.get(key)
        if found is None:
            found = self._native_plans[key] = _plan_native(self, *key)
        return found


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
    has_native = shape.has_native and query_starts.device.type == "cpu" and library() is not None
    return AttentionPlan(shape, query_starts, seq_lens, block_tables, table_rows, has_native)


def _plan_native(plan: AttentionPlan, scale: float, sliding_window: int) -> NativePlan:
    native = library()
    assert native is not None
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
        sliding_window=sliding_window,
        dtype=DTYPE_CODES[layout.dtype],
        num_threads=num_threads,
        scale=scale,
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
    return NativePlan(step, (items, pending, partials))
