"""KeyTable in Python: about 150 bytes a key."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class PythonKeys:
    """See KeyTable."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self._keys: list[bytes] = [b""]
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, key: bytes) -> int:
        """See KeyTable."""
        return self._rows.get(key, 0)

    def add(self, key: bytes) -> int:
        """See KeyTable."""
        if self._free:
            row = self._free.pop()
            self._keys[row] = key
        else:
            row = len(self._keys)
            self._keys.append(key)
        self._rows[key] = row
        return row

    def remove(self, row: int) -> None:
        """See KeyTable."""
        del self._rows[self._keys[row]]
        self._keys[row] = b""
        self._free.append(row)

    def key(self, row: int) -> bytes:
        """See KeyTable."""
        return self._keys[row]

    def prefix(self, keys: Sequence[bytes], scopes: array[int], scope: int) -> array[int]:
        """See KeyTable."""
        found, get = array("I"), self._rows.get
        for key in keys:
            row = get(key, 0)
            if not row or scopes[row] != scope:
                break
            found.append(row)
        return found
