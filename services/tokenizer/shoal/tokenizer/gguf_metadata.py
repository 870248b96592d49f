"""Reads the key-value part of a GGUF file, where the tokenizer is.

The `gguf` package's reader makes an array of every token (1.5 s for a vocabulary of 49k); this takes 40 ms.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shoal.tokenizer.errors import TokenizerError

MAGIC: Final = b"GGUF"
SUPPORTED_VERSIONS: Final = (2, 3)
MAX_METADATA_BYTES: Final = 1 << 30
MAX_KEYS: Final = 1 << 16

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from

Value = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that starts like a GGUF file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_gguf_metadata(path: Path) -> Mapping[str, Value]:
    """Every key of the file. Raises TokenizerError for a file that is not GGUF, is damaged or of another version."""
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise TokenizerError(f"{path}: too short for a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).read_all()


class _Reader:
    """A position in the mapped file; every size is checked against what is left before it is used."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._position = 0
        self._end = min(len(data), MAX_METADATA_BYTES)

    def read_all(self) -> dict[str, Value]:
        if self._data[:4] != MAGIC:
            raise TokenizerError(f"{self._path}: not a GGUF file")
        version, _, num_keys = struct.unpack_from("<IQQ", self._data, 4)
        if version not in SUPPORTED_VERSIONS:
            order = "; it is big-endian" if int.from_bytes(self._data[4:8], "big") in SUPPORTED_VERSIONS else ""
            raise TokenizerError(f"{self._path}: GGUF version {version} is not supported (2 and 3 are){order}")
        if num_keys > MAX_KEYS:
            raise TokenizerError(f"{self._path}: damaged: {num_keys} metadata keys")
        self._position = 24
        values: dict[str, Value] = {}
        for _ in range(num_keys):
            key = self._read_string("a key")
            (kind,) = _U32(self._data, self._take(4, key))
            values[key] = self._read_value(kind, key)
        return values

    def _read_value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self._read_string(key)
        if kind == _ARRAY:
            return self._read_array(key)
        if kind not in _SCALARS:
            raise TokenizerError(f"{self._path}: {key}: unknown GGUF value type {kind}")
        layout = "<" + _SCALARS[kind]
        value: int | float | bool = struct.unpack_from(layout, self._data, self._take(struct.calcsize(layout), key))[0]
        return value

    def _read_array(self, key: str) -> Value:
        (kind,) = _U32(self._data, self._take(4, key))
        (length,) = _U64(self._data, self._take(8, key))
        if kind == _STRING:
            return self._read_strings(length, key)
        if kind not in _SCALARS:
            raise TokenizerError(f"{self._path}: {key}: arrays of GGUF value type {kind} are not supported")
        code = _SCALARS[kind]
        size = struct.calcsize("<" + code)
        start = self._take(length * size, key)
        if code in "if":  # token types and scores: the long ones
            values = array(code, self._data[start : start + length * size])
            if struct.pack("=H", 1) != b"\x01\x00":
                values.byteswap()
            return values.tolist()
        return list(struct.unpack_from(f"<{length}{code}", self._data, start))

    def _read_strings(self, length: int, key: str) -> list[str]:
        if length * 8 > self._end - self._position:
            raise TokenizerError(
                f"{self._path}: {key}: damaged: {length} strings in {self._end - self._position} bytes"
            )
        data, position, end = self._data, self._position, self._end
        values: list[str] = []
        try:
            for _ in range(length):
                (size,) = _U64(data, position)
                position += 8
                if size > end - position:
                    raise TokenizerError(f"{self._path}: {key}: damaged: a string of {size} bytes")
                values.append(data[position : position + size].decode())
                position += size
        except (UnicodeDecodeError, struct.error) as error:
            raise TokenizerError(f"{self._path}: {key}: damaged: {error}") from error
        self._position = position
        return values

    def _read_string(self, key: str) -> str:
        (size,) = _U64(self._data, self._take(8, key))
        start = self._take(size, key)
        try:
            return self._data[start : start + size].decode()
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{self._path}: {key}: not UTF-8: {error}") from error

    def _take(self, num_bytes: int, key: str) -> int:
        start = self._position
        if num_bytes > self._end - start:
            raise TokenizerError(f"{self._path}: {key}: damaged: {num_bytes} bytes past the end of the metadata")
        self._position = start + num_bytes
        return start
