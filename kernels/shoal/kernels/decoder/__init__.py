"""A whole pre-norm decoder for a few rows in one native call: the other operations in order, without Python between."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels.linear import PackedWeight
from shoal.kernels.native import DTYPE_CODES, library
from shoal.kernels.paged_attention import AttentionOptions, AttentionPlan

__all__ = ["Decoder", "DecoderLayer"]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer's parameters: norms [hidden] of one dtype, products with their biases."""

    input_norm: Tensor
    post_attention_norm: Tensor
    qkv: PackedWeight
    o: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight
    qkv_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


_LAYER_FIELDS = tuple(DecoderLayer.__dataclass_fields__)


class _NativeLayer(ctypes.Structure):
    """`decoder_layer` of cpu.c."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in _LAYER_FIELDS)


class _NativeStep(ctypes.Structure):
    """`decoder_step` of cpu.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "attention", "cos_sin", "positions", "slot_mapping")),
        *((name, ctypes.c_void_p) for name in ("final_norm", "cache", "residual", "x", "qkv")),
        *((name, ctypes.c_void_p) for name in ("attended", "gate_up", "activated")),
        *((name, ctypes.c_int64) for name in ("layer_bytes", "rows", "hidden", "intermediate")),
        ("num_layers", ctypes.c_int32),
        ("rotary_dim", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


class Decoder:
    """Llama's layers: two norms each, SiLU, no head norms, one kind of attention. Parameters do not change.

    Equals, bit for bit, calling the operations one by one.
    """

    def __init__(
        self, layers: list[DecoderLayer], final_norm: Tensor, cos_sin: Tensor, eps: float, options: AttentionOptions
    ) -> None:
        """cos_sin: as for `rope_and_cache`. options: of every layer. Keeps the tensors alive."""
        self._layers, self._final_norm, self._cos_sin, self._eps = layers, final_norm, cos_sin, eps
        self._options = options
        self._table = (_NativeLayer * len(layers))(
            *(_NativeLayer(*(_address(getattr(layer, name)) for name in _LAYER_FIELDS)) for layer in layers)
        )
        products = [weight for layer in layers for weight in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        self._max_rows = min(weight.native_max_rows for weight in products)

    def accepts(self, plan: AttentionPlan, num_tokens: int) -> bool:
        """Whether `run` can be called: few rows, and all operations native for these sizes and dtypes."""
        if (
            self._final_norm.dtype != plan.shape.layout.dtype
        ):  # each norm has a kernel for float32 weights; this has not
            return False
        return num_tokens <= self._max_rows and plan.native(self._options) is not None

    def run(
        self, embeddings: Tensor, positions: Tensor, slot_mapping: Tensor, kv_cache: Tensor, plan: AttentionPlan
    ) -> Tensor:
        """The final, normalised hidden states [rows, hidden]; writes the rows' KV.

        embeddings: [rows, hidden] contiguous, overwritten. kv_cache: of all layers, in the plan's layout.
        """
        native = library()
        assert native is not None
        planned = plan.native(self._options)
        assert planned is not None
        layout, first = plan.shape.layout, self._layers[0]
        if kv_cache.stride(0) != planned.step.block_stride or kv_cache.dtype != layout.dtype:
            raise ValueError(f"kv_cache must be a cache with the layout {layout.name}")
        if embeddings.dtype not in DTYPE_CODES or not embeddings.is_contiguous() or embeddings.dtype != layout.dtype:
            raise ValueError(f"embeddings must be contiguous {layout.dtype}")
        rows, hidden = embeddings.shape
        widths = (
            hidden,
            first.qkv.out_features,
            first.o.in_features,
            first.gate_up.out_features,
            first.down.in_features,
        )
        x, *scratch = (torch.empty((rows, width), dtype=embeddings.dtype) for width in widths)
        step = _NativeStep(
            ctypes.addressof(self._table),
            planned.address,
            self._cos_sin.data_ptr(),
            positions.data_ptr(),
            slot_mapping.data_ptr(),
            self._final_norm.data_ptr(),
            kv_cache.data_ptr(),
            embeddings.data_ptr(),
            x.data_ptr(),
            *(tensor.data_ptr() for tensor in scratch),
            kv_cache.stride(1) * kv_cache.element_size(),
            rows,
            hidden,
            first.down.in_features,
            len(self._layers),
            self._cos_sin.shape[1],
            self._eps,
        )
        native.decoder(ctypes.addressof(step))
        return x


def _address(parameter: Tensor | PackedWeight | None) -> int | None:
    if isinstance(parameter, PackedWeight):
        return parameter.panels
    return None if parameter is None else parameter.data_ptr()
