"""How keys and values lie in the paged cache, for every operation that reads or writes it.

A block holds `block_size` tokens of all layers in one contiguous run of bytes, so that copying, storing or sending a
block is one memory copy. Within a block: [num_layers, 2 (k, v), num_kv_heads, block_size * head_dim]. On a GPU a head's
part is plain rows [block_size, head_dim], a tile for TMA (`RowsLayout`). On a CPU (`KVLayout` itself) it is packed in
32-bit lanes of p elements (p = 1 for float32, 2 for bfloat16):

    k  [head_dim / p, block_size, p]    sixteen tokens side by side: scores need no horizontal sums
    v  [block_size / p, head_dim, p]

which is what the bfloat16 dot product instructions of x86 and Arm take.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

LAYOUT_NAME = "cpu-lanes-1"
ROWS_LAYOUT_NAME = "gpu-rows-1"
"""Names the layout in the namespace of block keys: other bytes for the same tokens need another name."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Sizes of a paged KV cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"KV cache dtype {self.dtype} is not supported; use float32 or bfloat16")
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.head_dim % self.pack or self.block_size % self.pack:
            raise ValueError(
                f"head_dim ({self.head_dim}) and block_size ({self.block_size}) must be even for {self.dtype}"
            )

    @property
    def pack(self) -> int:
        """Elements to a 32-bit lane."""
        return 4 // self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.block_size * self.head_dim * self.dtype.itemsize

    @property
    def name(self) -> str:
        """Layout, sizes and dtype in one string: part of the block keys' namespace."""
        sizes = f"{self.num_layers}x{self.num_kv_heads}x{self.head_dim}x{self.block_size}"
        return f"{LAYOUT_NAME}:{sizes}:{str(self.dtype).removeprefix('torch.')}"

    def allocate(self, num_blocks: int) -> Tensor:
        """A zeroed cache [num_blocks, num_layers, 2, num_kv_heads, block_size * head_dim].

        Huge pages are asked for where the system has them: a step touches a few kilobytes of each of many blocks.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # Python's default, shared memory, gets no huge pages
        memory = mmap.mmap(-1, max(1, num_blocks * self.block_bytes), flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        flat = torch.frombuffer(memory, dtype=self.dtype)
        per_head = self.block_size * self.head_dim
        return flat[: num_blocks * self.block_bytes // self.dtype.itemsize].view(
            num_blocks, self.num_layers, 2, self.num_kv_heads, per_head
        )

    def write(self, layer_cache: Tensor, slot_mapping: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v [tokens, num_kv_heads, head_dim] at the slots (block * block_size + offset) of one layer."""
        blocks, offsets = slot_mapping.long() // self.block_size, slot_mapping.long() % self.block_size
        heads = torch.arange(self.num_kv_heads)
        keys, values = self.views(layer_cache)
        index = (blocks[:, None], heads[None, :])
        lanes = k.reshape(*k.shape[:-1], self.head_dim // self.pack, self.pack)
        keys[index[0], index[1], :, offsets[:, None], :] = lanes
        values[index[0], index[1], (offsets // self.pack)[:, None], :, (offsets % self.pack)[:, None]] = v

    def read(self, layer_cache: Tensor, block_ids: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of some blocks [..., n] of one layer, each [..., n * block_size, num_kv_heads, head_dim] (copies)."""
        keys, values = self.views(layer_cache)
        shape = (*block_ids.shape[:-1], block_ids.shape[-1] * self.block_size, self.num_kv_heads, self.head_dim)
        n = block_ids.dim()
        k = keys[block_ids.long()]  # [..., n, heads, dim / p, size, p]
        v = values[block_ids.long()]  # [..., n, heads, size / p, dim, p]
        lead = tuple(range(n))
        k = k.permute(*lead, n + 2, n, n + 1, n + 3).reshape(shape)
        v = v.permute(*lead, n + 1, n + 3, n, n + 2).reshape(shape)
        return k, v

    def views(self, layer_cache: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's keys [blocks, heads, dim / p, size, p] and values [blocks, heads, size / p, dim, p]."""
        lead = (layer_cache.shape[0], self.num_kv_heads)
        keys = layer_cache[:, 0].view(*lead, self.head_dim // self.pack, self.block_size, self.pack)
        return keys, layer_cache[:, 1].view(*lead, self.block_size // self.pack, self.head_dim, self.pack)


@dataclass(frozen=True, slots=True)
class RowsLayout(KVLayout):
    """The layout on a GPU: [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim], contiguous."""

    def __post_init__(self) -> None:
        # Named: with slots the class is made twice, and a plain super() would not find it.
        super(RowsLayout, self).__post_init__()
        if self.head_dim * self.dtype.itemsize % 16:
            raise ValueError(f"head_dim ({self.head_dim}) must be a multiple of {16 // self.dtype.itemsize} on a GPU")

    @property
    def name(self) -> str:
        """See `KVLayout.name`."""
        return super(RowsLayout, self).name.replace(LAYOUT_NAME, ROWS_LAYOUT_NAME, 1)

    def allocate(self, num_blocks: int) -> Tensor:
        """A zeroed cache on the current CUDA device, or where there is none (interpreted kernels) on the CPU."""
        sizes = (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.zeros((num_blocks, *sizes), dtype=self.dtype, device=device)

    def write(self, layer_cache: Tensor, slot_mapping: Tensor, k: Tensor, v: Tensor) -> None:
        """See `KVLayout.write`; negative slots are skipped."""
        kept = slot_mapping >= 0
        blocks = slot_mapping[kept].long() // self.block_size
        offsets = slot_mapping[kept].long() % self.block_size
        layer_cache[blocks, 0, :, offsets], layer_cache[blocks, 1, :, offsets] = k[kept], v[kept]

    def read(self, layer_cache: Tensor, block_ids: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVLayout.read`."""
        shape = (*block_ids.shape[:-1], block_ids.shape[-1] * self.block_size, self.num_kv_heads, self.head_dim)
        both = layer_cache[block_ids.long()].transpose(-3, -2)  # [..., n, 2, size, heads, dim]
        return both.select(-4, 0).reshape(shape), both.select(-4, 1).reshape(shape)
