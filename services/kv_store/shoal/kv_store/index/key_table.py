"""Numbers for keys: NativeKeys in C, and PythonKeys, which needs no compiler and is what the tests compare with."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from typing import Protocol

from shoal.kv_store.index.native_keys import NativeKeys
from shoal.kv_store.index.python_keys import PythonKeys
from shoal.native import NativeBuildError

_logger = logging.getLogger(__name__)


class KeyTable(Protocol):
    """A row, from 1 on, for each key of 16 bytes. Rows that were given back are used again, the latest first.

    Reading is safe from any thread.
    """

    def __len__(self) -> int:
        """Keys held."""

    def find(self, key: bytes) -> int:
        """The key's row; 0 for none."""

    def add(self, key: bytes) -> int:
        """A row for a key that has none. Raises MemoryError."""

    def remove(self, row: int) -> None:
        """Ends a row in use."""

    def key(self, row: int) -> bytes:
        """Of a row in use."""

    def prefix(self, keys: Sequence[bytes], scopes: array[int], scope: int) -> array[int]:
        """Rows of the leading keys that have one for which `scopes` says `scope`."""


def make_keys() -> KeyTable:
    """In C where there is a compiler; in Python, with a warning, elsewhere."""
    try:
        return NativeKeys()
    except NativeBuildError as error:
        _logger.warning("the index of blocks runs in Python, slower and with more memory: %s", error)
        return PythonKeys()
