"""The native library of the CPU operations: loading it, and the types that cross into it.

Plain C behind ctypes: no torch or Python headers are needed to build it, and a call costs about a microsecond.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.kernels.native.compiling import build
from shoal.native import NativeBuildError

_logger = logging.getLogger(__name__)

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
"""Element types of the native operations, as the C sources number them."""

_POINTER, _I64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


@dataclass(frozen=True, slots=True)
class NativeLibrary:
    """The loaded functions; their contracts stand in the C sources. Pointers are integers (tensor.data_ptr())."""

    path: Path
    rms_norm: Callable[..., int]
    act_and_mul: Callable[..., int]
    rope_and_cache: Callable[..., int]
    block_copy: Callable[..., int]
    paged_attention: Callable[..., int]
    plan_attention: Callable[..., int]
    linear: Callable[..., int]
    decoder: Callable[..., int]
    attention_max_rows: int


def load(path: Path) -> NativeLibrary:
    """Loads the library at `path` and hands it torch's thread pool. Raises NativeBuildError if it does not load."""
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeBuildError(f"cannot load {path}: {error}") from None

    def bind(name: str, *argtypes: type, restype: type | None = None) -> Callable[..., int]:
        function = getattr(handle, name)
        function.argtypes, function.restype = argtypes, restype
        return function  # type: ignore[no-any-return]

    use_pool = bind("shoal_use_pool", _POINTER)
    use_pool(pool_address())
    norm = bind("shoal_rms_norm", _POINTER, _POINTER, _POINTER, _POINTER, _I64, _I64, _FLOAT, *(_INT,) * 3)
    rope_types = (*(_POINTER,) * 5, *(_I64,) * 5, *(_INT,) * 5, _POINTER, _POINTER, _FLOAT, _INT, _INT)
    plan_types = (_POINTER, _POINTER, ctypes.c_int32, _POINTER, _POINTER, _POINTER)
    return NativeLibrary(
        path=path,
        rms_norm=norm,
        act_and_mul=bind("shoal_act_and_mul", _POINTER, _POINTER, _I64, _I64, *(_INT,) * 3),
        rope_and_cache=bind("shoal_rope_and_cache", *rope_types),
        block_copy=bind("shoal_block_copy", _POINTER, _POINTER, _I64, _I64, _INT),
        paged_attention=bind("shoal_paged_attention", _POINTER, _POINTER, _POINTER, _POINTER),
        plan_attention=bind("shoal_plan_attention", *plan_types, restype=ctypes.c_int32),
        linear=bind("shoal_linear", *(_POINTER,) * 4, *(_I64,) * 3, *(_INT,) * 3),
        decoder=bind("shoal_decoder", _POINTER),
        attention_max_rows=bind("shoal_attention_max_rows", restype=ctypes.c_int32)(),
    )


def pool_address() -> int | None:
    """GOMP_parallel of the OpenMP runtime that torch has loaded (globally, so the process can see it), if it has it."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


@functools.cache
def library() -> NativeLibrary | None:
    """The native library, built on the first call; None where it cannot be had (logged once) or is switched off.

    SHOAL_NATIVE_KERNELS=off switches it off; every operation then runs on torch.
    """
    if os.environ.get("SHOAL_NATIVE_KERNELS", "on") == "off":
        return None
    try:
        return load(build())
    except NativeBuildError as error:
        _logger.warning("CPU operations run on torch, several times slower: %s", error)
        return None
