"""Each of the GPU's operations by itself, beside torch: what `kernels_cuda.py` measures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, silu
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import rms_norm as torch_rms_norm

from gpu_timing import Call, Ceilings, compile_all, copies_beyond_cache, graph_us
from model_shapes import ModelShape, Weight, load_shapes
from shoal.kernels.act_and_mul import act_and_mul
from shoal.kernels.block_copy import triton_impl as block_impl
from shoal.kernels.kv_layout import RowsLayout
from shoal.kernels.linear import linear, pack
from shoal.kernels.linear.reference import bytes_moved, flops
from shoal.kernels.rms_norm import add_rms_norm, rms_norm
from shoal.kernels.rope import HeadNorms, rope_and_cache

LINEAR_ROWS = (1, 8, 32, 64, 128, 256)
TOKENS = (1, 256, 8192)
PAGE = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """One operation at one size."""

    name: str
    microseconds: float
    torch_microseconds: float | None
    """The fastest way that torch has to the same result; None where it is the same."""
    work: float
    """Bytes or operations of a call."""
    unit: str
    """GB/s or TFLOP/s, whichever bounds it."""
    share: float
    """Of what `Ceilings` allow."""

    @property
    def rate(self) -> float:
        """Work in a time, in `unit`."""
        return self.work / self.microseconds / (1e3 if self.unit == "GB/s" else 1e6)


def time_operation(
    name: str,
    calls: Sequence[Call],
    peers: Sequence[Sequence[Call]],
    ceilings: Ceilings,
    *,
    bytes_read: float,
    bytes_written: float,
    flops: float = 0,
) -> Timing:
    """Medians of ours and of the fastest peer."""
    microseconds = graph_us(calls)
    peer = min((graph_us(peer) for peer in peers), default=None)
    transfer_us = ceilings.shortest_us(bytes_read=bytes_read, bytes_written=bytes_written)
    best_us = ceilings.shortest_us(bytes_read=bytes_read, bytes_written=bytes_written, flops=flops)
    is_transfer = best_us <= transfer_us
    work, unit = (bytes_read + bytes_written, "GB/s") if is_transfer else (flops, "TFLOP/s")
    return Timing(name, microseconds, peer, work, unit, best_us / microseconds)


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    """bfloat16 on the GPU."""
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def measure_linear(ceilings: Ceilings) -> Iterator[Timing]:
    """Products of the models' weights, beside cuBLAS."""
    for shape in load_shapes():
        for weight in shape.weights:
            yield from _measure_weight(f"{shape.name} {weight.name}", weight, ceilings)


def _measure_weight(name: str, weight: Weight, ceilings: Ceilings) -> Iterator[Timing]:
    copies = copies_beyond_cache(weight.num_bytes)
    packed = [pack(randn(weight.out_features, weight.in_features, scale=0.02)) for _ in range(copies)]
    inputs = {rows: randn(rows, weight.in_features) for rows in LINEAR_ROWS}

    def call(rows: int, i: int) -> Call:
        return lambda: linear(inputs[rows], packed[i], out_float32=weight.is_logits)

    compile_all([call(rows, 0) for rows in LINEAR_ROWS])
    for rows in LINEAR_ROWS:
        bytes_written = rows * weight.out_features * (4 if weight.is_logits else 2)
        yield time_operation(
            f"linear {name} {weight.out_features}x{weight.in_features}, {rows} rows",
            [call(rows, i) for i in range(copies)] * max(1, 8 // copies),
            [[peer(inputs[rows], each.data) for each in packed] * max(1, 8 // copies) for peer in peers_of(weight)],
            ceilings,
            bytes_read=bytes_moved(rows, weight.out_features, weight.in_features, 2) - 2 * rows * weight.out_features,
            bytes_written=bytes_written,
            flops=flops(rows, weight.out_features, weight.in_features),
        )


def peers_of(weight: Weight) -> tuple[Callable[[Tensor, Tensor], Call], ...]:
    """How torch computes the same product."""
    if not weight.is_logits:
        return (lambda x, data: lambda: torch_linear(x, data),)
    return (
        lambda x, data: lambda: torch.mm(x, data.t(), out_dtype=torch.float32),
        lambda x, data: lambda: torch_linear(x, data).float(),
    )


def measure_elementwise(ceilings: Ceilings) -> Iterator[Timing]:
    """Norms, gates, rotations and embeddings at the largest and smallest model's sizes.

    Few tokens stay in the second-level cache, as they do between the kernels of a step: their times are latencies.
    """
    shapes = load_shapes()
    for shape, tokens in itertools.product((shapes[0], shapes[-1]), TOKENS):
        yield from _measure_norms(shape, tokens, ceilings)
        yield _measure_gate(shape, tokens, ceilings)
        yield _measure_embedding(shape, tokens, ceilings)
    for shape, tokens in itertools.product(shapes, TOKENS):
        for has_norms in (False, True):
            yield _measure_rope(shape, tokens, has_norms, ceilings)


def _measure_norms(shape: ModelShape, tokens: int, ceilings: Ceilings) -> Iterator[Timing]:
    x, residual, weight = randn(tokens, shape.hidden), randn(tokens, shape.hidden), randn(shape.hidden)
    size = (shape.hidden,)
    yield time_operation(
        f"rms_norm {tokens} x {shape.hidden}",
        [lambda: rms_norm(x, weight, 1e-5)] * 8,
        [[lambda: torch_rms_norm(x, size, weight, 1e-5)] * 8],
        ceilings,
        bytes_read=x.nbytes,
        bytes_written=x.nbytes,
    )
    yield time_operation(
        f"add_rms_norm {tokens} x {shape.hidden}",
        [lambda: add_rms_norm(x, residual, weight, 1e-5)] * 8,
        [[lambda: torch_rms_norm(residual.add_(x), size, weight, 1e-5)] * 8],
        ceilings,
        bytes_read=2 * x.nbytes,
        bytes_written=2 * x.nbytes,
    )


def _measure_gate(shape: ModelShape, tokens: int, ceilings: Ceilings) -> Timing:
    gate_up = randn(tokens, 2 * shape.intermediate)
    gate, up = gate_up.chunk(2, dim=1)
    return time_operation(
        f"act_and_mul {tokens} x {shape.intermediate}",
        [lambda: act_and_mul(gate_up)] * 8,
        [[lambda: silu(gate) * up] * 8],
        ceilings,
        bytes_read=gate_up.nbytes,
        bytes_written=gate_up.nbytes / 2,
    )


def _measure_embedding(shape: ModelShape, tokens: int, ceilings: Ceilings) -> Timing:
    table = randn(shape.vocab_size, shape.hidden)
    ids = torch.randint(0, shape.vocab_size, (tokens,), device="cuda", dtype=torch.int32)
    num_bytes = tokens * shape.hidden * 2
    call = [lambda: embedding(ids, table)] * 8
    name = f"embedding {tokens} x {shape.hidden} (torch)"
    return time_operation(name, call, [], ceilings, bytes_read=num_bytes, bytes_written=num_bytes)


def _measure_rope(shape: ModelShape, tokens: int, has_norms: bool, ceilings: Ceilings) -> Timing:
    layout = RowsLayout(1, shape.num_kv_heads, shape.head_dim, PAGE, torch.bfloat16)
    num_pages = -(-tokens // PAGE)
    cache = layout.allocate(num_pages)[:, 0]
    heads = shape.num_heads + 2 * shape.num_kv_heads
    qkv = randn(tokens, heads * shape.head_dim)
    angles = torch.randn((8192, shape.head_dim // 2), device="cuda")
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    positions = torch.arange(tokens, device="cuda", dtype=torch.int32) % 8192
    slots = torch.randperm(num_pages * PAGE, device="cuda")[:tokens].int()
    weight = randn(shape.head_dim)
    norms = HeadNorms(weight, weight, 1e-6) if has_norms else None
    rotated = tokens * (shape.num_heads + shape.num_kv_heads) * shape.head_dim * 2
    stored = tokens * shape.num_kv_heads * shape.head_dim * 2
    return time_operation(
        f"rope_and_cache{' with head norms' if has_norms else ''} {shape.name}, {tokens} tokens",
        [lambda: rope_and_cache(qkv, cos_sin, positions, slots, cache, layout, shape.num_heads, norms)] * 8,
        [[lambda: _rotate(qkv, cos_sin, positions, slots, cache, shape, weight if has_norms else None)] * 8],
        ceilings,
        bytes_read=rotated + stored + tokens * shape.head_dim * 4,
        bytes_written=rotated + 2 * stored,
    )


def _rotate(
    qkv: Tensor, cos_sin: Tensor, positions: Tensor, slots: Tensor, cache: Tensor, shape: ModelShape,
    norm_weight: Tensor | None
) -> None:  # fmt: skip
    """The same by torch's operations, rounded more often."""
    heads = qkv.view(len(qkv), -1, shape.head_dim)
    last = shape.num_heads + shape.num_kv_heads
    rotated = heads[:, :last]
    if norm_weight is not None:
        rotated = torch_rms_norm(rotated, (shape.head_dim,), norm_weight, 1e-6)
    cosine, sine = cos_sin[positions, None].to(qkv.dtype).chunk(2, dim=-1)
    low, high = rotated.chunk(2, dim=-1)
    heads[:, :last] = torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)
    blocks, offsets = slots // PAGE, slots % PAGE
    cache[blocks, 0, :, offsets] = heads[:, shape.num_heads : last]
    cache[blocks, 1, :, offsets] = heads[:, last:]


def measure_blocks(ceilings: Ceilings) -> Iterator[Timing]:
    """Copies of KV blocks of the largest model: within the cache, and to and from staging."""
    shape = load_shapes()[0]
    layout = RowsLayout(32, shape.num_kv_heads, shape.head_dim, PAGE, torch.bfloat16)
    for count in (1, 8, 64):
        cache = layout.allocate(2 * count)
        staging = torch.empty((count, cache[0].nbytes), dtype=torch.uint8, device="cuda")
        ids = torch.randperm(2 * count, device="cuda").int()
        sources, targets = ids[:count], ids[count:]
        flat = cache.view(torch.uint8).view(2 * count, -1)
        for name, call, peer in (
            ("block_copy", _copy(cache, cache, sources, targets), _index(flat, flat, sources, targets)),
            ("gather_blocks", _copy(cache, staging, sources, None), _index(flat, staging, sources, None)),
            ("scatter_blocks", _copy(staging, cache, None, targets), _index(staging, flat, None, targets)),
        ):
            moved = staging.nbytes
            yield time_operation(
                f"{name} {count} of {moved // count >> 20} MiB",
                [call] * 4,
                [[peer] * 4],
                ceilings,
                bytes_read=moved,
                bytes_written=moved,
            )


def _copy(source: Tensor, target: Tensor, source_ids: Tensor | None, target_ids: Tensor | None) -> Call:
    return lambda: block_impl.copy_blocks(source, target, source_ids, target_ids)


def _index(source: Tensor, target: Tensor, source_ids: Tensor | None, target_ids: Tensor | None) -> Call:
    def call() -> None:
        read = source if source_ids is None else source.index_select(0, source_ids)
        if target_ids is None:
            target.copy_(read)
        else:
            target.index_copy_(0, target_ids.long(), read)

    return call
