"""Reads the header of a GGUF file: metadata and where the tensors lie.

The `gguf` package's reader builds an array for every token of the vocabulary (1.6 s for 49k tokens, where this takes
0.05 s) and reports damage as IndexError; so the header is read here, and the package decodes the tensors.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from shoal.model_worker.loader.errors import ModelLoadError

_MAX_DIMS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KEPT_ARRAY_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's place. `shape` is in the order of torch (rows first), the reverse of the file's."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    """From the start of the file."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensors. Long arrays and arrays of strings (the vocabulary) are left out of `metadata`."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_header(path: Path, data: mmap.mmap) -> GgufHeader:
    """Parses `data`, the whole file. Raises ModelLoadError, with the offset, for anything that does not add up."""
    return _Reader(path, data).read()


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def read(self) -> GgufHeader:
        if self._data[:4] != b"GGUF":
            raise ModelLoadError(self._path, f"is not a GGUF file: it begins with {self._data[:4]!r}")
        self._at = 4
        version = self._unpack("I", "version")
        if version not in (2, 3):
            raise ModelLoadError(self._path, f"has GGUF version {version}; 2 and 3 are supported")
        num_tensors, num_keys = self._unpack("Q", "tensor count"), self._unpack("Q", "metadata count")
        # The smallest entries are 24 and 13 bytes: counts that cannot fit are refused before anything is made of them.
        if num_tensors * 24 + num_keys * 13 > len(self._data):
            self._fail(f"counts {num_tensors} tensors and {num_keys} metadata entries, more than the file can hold")
        metadata = {}
        for _ in range(num_keys):
            key = self._string("metadata key")
            metadata[key] = self._value(self._unpack("I", f"type of {key}"), key)
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._fail(f"general.alignment must be a power of two, not {alignment!r}")
        start = -(-self._at // alignment) * alignment
        return GgufHeader(metadata, {info[0]: self._place(*info, start) for info in infos})

    def _fail(self, problem: str) -> None:
        raise ModelLoadError(self._path, f"{problem} (at byte {self._at})")

    def _unpack(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        if self._at + size > len(self._data):
            self._fail(f"is truncated: the file of {len(self._data)} bytes ends within the {what}")
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += size
        return value

    def _string(self, what: str) -> str:
        length = self._unpack("Q", what)
        if self._at + length > len(self._data):
            self._fail(f"is truncated or corrupt: {what} has {length} bytes in a file of {len(self._data)}")
        raw = self._data[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8", errors="replace")

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            self._fail(f"{key} has unknown type {kind}")
        return self._unpack(_SCALARS[kind], key)

    def _array(self, key: str) -> Any:
        kind, length = self._unpack("I", f"element type of {key}"), self._unpack("Q", f"length of {key}")
        if kind == _STRING:
            return self._skip_strings(key, length)
        if kind not in _SCALARS:
            self._fail(f"{key} is an array of unsupported element type {kind}")
        size = struct.calcsize("<" + _SCALARS[kind]) * length
        if self._at + size > len(self._data):
            self._fail(f"is truncated or corrupt: {key} has {length} elements in a file of {len(self._data)} bytes")
        begin, self._at = self._at, self._at + size
        if length > _KEPT_ARRAY_LENGTH:
            return None
        return struct.unpack_from(f"<{length}{_SCALARS[kind]}", self._data, begin)

    def _skip_strings(self, key: str, length: int) -> None:
        data, at, end = self._data, self._at, len(self._data)
        unpack = struct.Struct("<Q").unpack_from
        for index in range(length):
            if at + 8 > end or (at := at + 8 + unpack(data, at)[0]) > end:
                self._fail(f"is truncated or corrupt: element {index} of {key} lies beyond the file of {end} bytes")
        self._at = at

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string("tensor name")
        num_dims = self._unpack("I", f"dimensions of {name}")
        if not 1 <= num_dims <= _MAX_DIMS:
            self._fail(f"tensor {name} has {num_dims} dimensions; 1 to {_MAX_DIMS} are allowed")
        shape = tuple(self._unpack("Q", f"dimensions of {name}") for _ in range(num_dims))[::-1]
        code, offset = self._unpack("I", f"type of {name}"), self._unpack("Q", f"offset of {name}")
        try:
            kind = GGMLQuantizationType(code)
        except ValueError:
            raise ModelLoadError(self._path, f"tensor {name} has unknown type {code} (at byte {self._at})") from None
        return name, shape, kind, offset

    def _place(
        self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, offset: int, start: int
    ) -> GgufTensor:
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        elements = 1
        for n in shape:
            elements *= n
        if elements == 0 or shape[-1] % per_block:
            self._fail(f"tensor {name} has shape {shape}; {kind.name} needs rows of a multiple of {per_block}")
        num_bytes = elements // per_block * block_bytes
        end = start + offset + num_bytes
        if end > len(self._data):
            raise ModelLoadError(
                self._path,
                f"is truncated: tensor {name} takes bytes {start + offset} to {end}, "
                f"the file ends at {len(self._data)}; download it again",
            )
        return GgufTensor(name, shape, kind, start + offset, num_bytes)
