"""The adaptive policy in C (adaptive.c): about 85 bytes a block, ghosts included."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from shoal.blocks import KEY_BYTES, join_keys
from shoal.kv_store.policy.policy import IsEvictable
from shoal.native import Library, build
from shoal.native import NativeBuildError as NativeBuildError

_LIBRARY: Final = Library(
    "shoal-kv-policy",
    "native",
    Path(__file__).resolve().parent,
    ("adaptive.c",),
    ("reuse_rates.h",),
    # Fused multiplication and addition would round otherwise than Python does.
    ("-ffp-contract=off",),
)
_POINTER, _KEY, _U32, _INT, _I64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_int64
_DOUBLE: Final = ctypes.c_double
_MAX_BLOCKS: Final = 1 << 30
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "make": (_POINTER, _U32),
    "free": (None, _POINTER),
    "len": (_U32, _POINTER),
    "has": (_INT, _POINTER, _KEY),
    "touch": (_I64, _POINTER, _KEY, _I64),
    "admit": (_INT, _POINTER, _KEY, _DOUBLE),
    "insert": (_INT, _POINTER, _KEY, _KEY, _DOUBLE),
    "remove": (_INT, _POINTER, _KEY),
    "worst": (_POINTER, _POINTER),
    "oldest_held": (_POINTER, _POINTER),
    "hold": (None, _POINTER),
    "release": (None, _POINTER),
    "give_up": (None, _POINTER),
    "bytes": (ctypes.c_uint64, _POINTER),
    "rank": (_DOUBLE, _POINTER, _INT, _INT),
}


@functools.cache
def _library() -> dict[str, Callable[..., Any]]:
    """Raises NativeBuildError."""
    path = build(_LIBRARY)
    try:
        handle = ctypes.PyDLL(str(path))  # keeps the GIL: calls are shorter than giving it up and taking it back
    except OSError as error:
        raise NativeBuildError(f"cannot load {path}: {error}") from None
    functions = {}
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(handle, f"shoal_policy_{name}")
        function.restype, function.argtypes = result, tuple(arguments)
        functions[name] = function
    return functions


class NativeAdaptive:
    """See PythonAdaptive. Memory grows by doubling and is not given back."""

    def __init__(self, num_blocks: int) -> None:
        """Raises NativeBuildError without a C compiler, ValueError, MemoryError."""
        if not 1 <= num_blocks <= _MAX_BLOCKS:
            raise ValueError(f"num_blocks is {num_blocks}; give 1 to {_MAX_BLOCKS}")
        call = _library()
        self._policy = call["make"](num_blocks)
        if not self._policy:
            raise MemoryError(f"no room for a policy of {num_blocks} blocks")
        weakref.finalize(self, call["free"], self._policy)
        self._call = call
        self._touch, self._admit, self._insert = call["touch"], call["admit"], call["insert"]
        self._worst, self._oldest_held, self._give_up = call["worst"], call["oldest_held"], call["give_up"]

    def __len__(self) -> int:
        return int(self._call["len"](self._policy))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and len(key) == KEY_BYTES and bool(self._call["has"](self._policy, key))

    @property
    def num_bytes(self) -> int:
        """Of memory taken, touched or not."""
        return int(self._call["bytes"](self._policy))

    def touch(self, key: bytes) -> None:
        """See Policy."""
        self._touch(self._policy, _checked(key), 1)

    def touch_all(self, keys: Iterable[bytes]) -> None:
        """See Policy."""
        joined = keys if isinstance(keys, list) else list(keys)
        self._touch(self._policy, join_keys(joined), len(joined))

    def admit(self, key: bytes, size: int, cost: float) -> bool:
        """See Policy."""
        return bool(self._admit(self._policy, _checked(key), cost / size))

    def insert(self, key: bytes, size: int, cost: float, parent: bytes | None) -> None:
        """See Policy. Raises MemoryError."""
        if self._insert(self._policy, _checked(key), None if parent is None else _checked(parent), cost / size) < 0:
            raise MemoryError(f"no memory for the policy's {len(self) + 1} blocks")

    def remove(self, key: bytes) -> None:
        """See Policy."""
        self._call["remove"](self._policy, _checked(key))

    def victim(self, is_evictable: IsEvictable) -> bytes | None:
        """See Policy."""
        policy = self._policy
        if address := self._oldest_held(policy):
            self._look_again(ctypes.string_at(address, KEY_BYTES), is_evictable)
        while address := self._worst(policy):
            key = ctypes.string_at(address, KEY_BYTES)
            if is_evictable(key):
                self._give_up(policy)
                return key
            self._call["hold"](policy)
        return self._victim_of_held(is_evictable)

    def rank(self, num_uses: int, bucket: int) -> float:
        """See PythonAdaptive."""
        return float(self._call["rank"](self._policy, num_uses - 1, bucket))

    def _look_again(self, held: bytes, is_evictable: IsEvictable) -> bool:
        """At the block held longest, which is the current one; whether it went back to its list."""
        evictable = is_evictable(held)
        self._call["release" if evictable else "hold"](self._policy)
        return evictable

    def _victim_of_held(self, is_evictable: IsEvictable) -> bytes | None:
        policy, first = self._policy, b""
        while address := self._oldest_held(policy):
            held = ctypes.string_at(address, KEY_BYTES)
            if held == first:
                break
            if not self._look_again(held, is_evictable):
                first = first or held
            elif (address := self._worst(policy)) and is_evictable(key := ctypes.string_at(address, KEY_BYTES)):
                self._give_up(policy)
                return key
        return None


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a block key has {KEY_BYTES} bytes, this one has {len(key)}")
    return key
