"""BlockTable in C (block_table.c): about 55 bytes a key for up to 64 workers and one tier."""

from __future__ import annotations

import ctypes
import functools
import secrets
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from shoal.blocks import KEY_BYTES, KeyChain, join_keys
from shoal.native import Library, NativeBuildError, build

_LIBRARY: Final = Library("shoal-block-table", "native", Path(__file__).resolve().parent, ("block_table.c",))
_NUM_LEVELS: Final = 4
_MAX_SLOTS: Final = 16_384
_FIRST_CHUNK: Final = 64
_POINTER, _I32, _U32, _I64, _INT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_int
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "make": (_POINTER, _U32, ctypes.c_uint64),
    "free": (None, _POINTER),
    "len": (_U32, _POINTER),
    "count": (_U32, _POINTER, _INT, _U32),
    "depths": (_POINTER, _POINTER, _INT),
    "acquire": (_I32, _POINTER),
    "retire": (None, _POINTER, _U32),
    "sweep": (_INT, _POINTER, _U32, _U32),
    "store": (_INT, _POINTER, _U32, _INT, _POINTER, _I64),
    "remove": (None, _POINTER, _U32, _INT, _POINTER, _I64, _U32),
    "expect": (None, _POINTER, _U32, _POINTER, _I64, _U32, _U32),
    "withdraw": (None, _POINTER, _U32, _POINTER, _I64, _U32, _U32),
    "begin_match": (None, _POINTER, _U32),
    "match": (_INT, _POINTER, _POINTER, _I64),
    "end_match": (_I32, _POINTER),
}


@functools.cache
def _library() -> dict[str, Callable[..., Any]]:
    """Raises NativeBuildError."""
    path = build(_LIBRARY)
    try:
        handle = ctypes.PyDLL(str(path))  # keeps the GIL: most calls are shorter than giving it up and taking it back
    except OSError as error:
        raise NativeBuildError(f"cannot load {path}: {error}") from None
    functions = {}
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(handle, f"shoal_table_{name}")
        function.restype, function.argtypes = result, tuple(arguments)
        functions[name] = function
    return functions


class NativeTable:
    """See BlockTable. Memory is taken as keys come, never given back; a tick fits 32 bits unsigned, and is not 0."""

    def __init__(self, max_keys: int) -> None:
        """Raises NativeBuildError without a C compiler, MemoryError when the address space is too small."""
        self._call = _library()
        table = self._call["make"](max_keys, secrets.randbits(64))
        if not table:
            raise MemoryError(f"no room for an index of {max_keys} blocks")
        self._table = table
        weakref.finalize(self, self._call["free"], table)
        rows = ((_U32 * _MAX_SLOTS).from_address(self._call["depths"](table, level)) for level in range(_NUM_LEVELS))
        self._depths = [memoryview(row).cast("B").cast("I") for row in rows]  # indexed faster than a ctypes array
        self._begin, self._match, self._end = (self._call[name] for name in ("begin_match", "match", "end_match"))

    def __len__(self) -> int:
        return int(self._call["len"](self._table))

    def acquire(self) -> int:
        """See BlockTable."""
        return int(self._call["acquire"](self._table))

    def retire(self, slot: int) -> None:
        """See BlockTable."""
        self._call["retire"](self._table, slot)

    def sweep(self, budget: int, tick: int) -> bool:
        """See BlockTable."""
        return bool(self._call["sweep"](self._table, budget, tick))

    def store(self, slot: int, tier: int, keys: Sequence[bytes]) -> None:
        """See BlockTable. Raises MemoryError."""
        if self._call["store"](self._table, slot, tier, join_keys(keys), len(keys)):
            raise MemoryError("no memory for the prefix index")

    def remove(self, slot: int, tier: int, keys: Sequence[bytes], tick: int) -> None:
        """See BlockTable."""
        self._call["remove"](self._table, slot, tier, join_keys(keys), len(keys), tick)

    def expect(self, slot: int, keys: KeyChain, tick: int, until: int) -> None:
        """See BlockTable."""
        num = keys.hash_to(len(keys))
        self._call["expect"](self._table, slot, keys.address, num, tick, until)

    def withdraw(self, slot: int, keys: KeyChain, tick: int, until: int) -> None:
        """See BlockTable."""
        self._call["withdraw"](self._table, slot, keys.address, keys.num_hashed, tick, until)

    def match(self, keys: KeyChain, tick: int) -> int:
        """See BlockTable. Hashes in chunks, four times as many keys each time, so a cold prompt costs one chunk."""
        table, done, num = self._table, 0, len(keys)
        self._begin(table, tick)
        chunk = _FIRST_CHUNK
        while done < num:
            hashed = keys.hash_to(done + chunk)
            found = self._match(table, keys.address + KEY_BYTES * done, hashed - done)
            if found <= 0:
                if found < 0:
                    raise MemoryError("no memory to match a prompt's blocks")
                break
            done, chunk = hashed, 4 * chunk
        return int(self._end(table))

    def depths(self, level: int) -> Sequence[int]:
        """See BlockTable."""
        return self._depths[level]

    def count(self, slot: int, tier: int) -> int:
        """See BlockTable."""
        return int(self._call["count"](self._table, tier, slot))
