"""KeyTable in C (keys.c): 22 to 29 bytes a key."""

from __future__ import annotations

import ctypes
import functools
import secrets
import weakref
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from shoal.blocks import KEY_BYTES, join_keys
from shoal.native import Library, NativeBuildError, build

_LIBRARY: Final = Library("shoal-kv-keys", "native", Path(__file__).resolve().parent, ("keys.c",))
_POINTER, _KEY, _U32, _I64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_int64
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "make": (_POINTER, ctypes.c_uint64),
    "free": (None, _POINTER),
    "len": (_U32, _POINTER),
    "key": (_POINTER, _POINTER, _U32),
    "find": (_U32, _POINTER, _KEY),
    "bytes": (ctypes.c_uint64, _POINTER),
    "add": (_U32, _POINTER, _KEY),
    "remove": (None, _POINTER, _U32),
    "prefix": (_I64, _POINTER, _KEY, _I64, _POINTER, ctypes.c_uint16, _POINTER),
}


@functools.cache
def _library() -> dict[str, Callable[..., Any]]:
    """Raises NativeBuildError."""
    path = build(_LIBRARY)
    try:
        handle = ctypes.PyDLL(str(path))  # keeps the GIL, which is what makes reading safe from any thread
    except OSError as error:
        raise NativeBuildError(f"cannot load {path}: {error}") from None
    functions = {}
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(handle, f"shoal_keys_{name}")
        function.restype, function.argtypes = result, tuple(arguments)
        functions[name] = function
    return functions


class NativeKeys:
    """See KeyTable. Memory grows as keys come, and is not given back."""

    def __init__(self) -> None:
        """Raises NativeBuildError without a C compiler, MemoryError."""
        call = _library()
        table = call["make"](secrets.randbits(64))
        if not table:
            raise MemoryError("no room for an index of blocks")
        weakref.finalize(self, call["free"], table)
        self._table = table
        self._call = call
        self._find, self._add, self._key, self._prefix = call["find"], call["add"], call["key"], call["prefix"]

    def __len__(self) -> int:
        return int(self._call["len"](self._table))

    @property
    def num_bytes(self) -> int:
        """Of memory taken, touched or not."""
        return int(self._call["bytes"](self._table))

    def find(self, key: bytes) -> int:
        """See KeyTable."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a block key has {KEY_BYTES} bytes, this one has {len(key)}")
        row: int = self._find(self._table, key)
        return row

    def add(self, key: bytes) -> int:
        """See KeyTable."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a block key has {KEY_BYTES} bytes, this one has {len(key)}")
        row: int = self._add(self._table, key)
        if not row:
            raise MemoryError(f"no memory for an index of {len(self) + 1} blocks")
        return row

    def remove(self, row: int) -> None:
        """See KeyTable."""
        self._call["remove"](self._table, row)

    def key(self, row: int) -> bytes:
        """See KeyTable."""
        return ctypes.string_at(self._key(self._table, row), KEY_BYTES)

    def prefix(self, keys: Sequence[bytes], scopes: array[int], scope: int) -> array[int]:
        """See KeyTable. Raises ValueError for a key that has not 16 bytes."""
        num = len(keys)
        rows = array("I", bytes(4 * num))
        packed = join_keys(keys)
        num_found = self._prefix(self._table, packed, num, scopes.buffer_info()[0], scope, rows.buffer_info()[0])
        del rows[num_found:]
        return rows
