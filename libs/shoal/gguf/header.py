"""The header of a GGUF file, parsed. Versions 2 and 3, little-endian."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from shoal.gguf.errors import GgufError

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_HEADER_BYTES: Final = 1 << 30
_MAX_METADATA_ENTRIES: Final = 1 << 16
_MAX_TENSORS: Final = 1 << 20
_MAX_DIMS: Final = 4
_DEFAULT_ALIGNMENT: Final = 32

_PREFIX: Final = struct.Struct("<4sIQQ")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_TYPE_AND_LENGTH: Final = struct.Struct("<IQ")
_MIN_METADATA_ENTRY_BYTES: Final = 8 + 4 + 1
_MIN_TENSOR_INFO_BYTES: Final = 8 + 4 + 8 + 4 + 8

_STRING: Final = 8
_ARRAY: Final = 9
_SCALAR_CODES: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS: Final = {kind: struct.Struct("<" + code) for kind, code in _SCALAR_CODES.items()}


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """Stands in the metadata for an array that the caller did not want, so that it is not mistaken for absent."""

    length: int


Scalar = int | float | bool | str
MetadataValue = Scalar | list[int] | list[float] | list[bool] | list[str] | SkippedArray
KeepArray = Callable[[str], bool]
"""Whether the array under a key is to be kept."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header describes it. Whether its bytes lie within the file depends on the type: not checked."""

    name: str
    shape: tuple[int, ...]
    """1 to 4 sizes in the order of torch (rows first), the reverse of the file's."""
    type_code: int
    """A number of ggml's enum `ggml_type`; unknown ones are not refused here."""
    offset: int
    """In bytes from `GgufHeader.data_start`; a multiple of the file's alignment."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that stands before the tensors' bytes."""

    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, TensorInfo]
    """By name, in the order of the file."""
    data_start: int
    """Where the tensors' bytes begin, in bytes from the start of the file: aligned, possibly beyond the file's end."""


def is_gguf(path: Path) -> bool:
    """Whether `path` is a file that starts like a GGUF file. Raises OSError if it cannot be read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def map_file(path: Path) -> mmap.mmap:
    """Maps the whole file for reading; the caller closes it. Raises GgufError, also for an empty file."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise GgufError(path, f"cannot be mapped: {error}") from None


def read_header(path: Path, data: mmap.mmap | bytes, *, keep_array: KeepArray = lambda _: False) -> GgufHeader:
    """Parses the header of `data`, the whole file; `path` is for messages.

    Arrays for which `keep_array` is false are stepped over and become SkippedArray. Raises GgufError.
    """
    reader = _Reader(path, data)
    num_tensors, num_entries = reader.read_counts()
    metadata = reader.read_metadata(num_entries, keep_array, None)
    alignment = reader.check_alignment(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
    tensors = reader.read_tensor_infos(num_tensors, alignment)
    data_start = -(-reader.position // alignment) * alignment
    return GgufHeader(MappingProxyType(metadata), MappingProxyType(tensors), data_start)


def read_metadata(
    path: Path,
    data: mmap.mmap | bytes,
    *,
    keep_array: KeepArray = lambda _: False,
    stop_before: str | None = None,
) -> Mapping[str, MetadataValue]:
    """Like `read_header`, of the metadata alone: nothing behind it is looked at.

    With `stop_before`, nothing from the first key that starts with it is looked at either. Raises GgufError.
    """
    reader = _Reader(path, data)
    _, num_entries = reader.read_counts()
    return MappingProxyType(reader.read_metadata(num_entries, keep_array, stop_before))


class _Reader:
    """A position in the file. Every size is compared with what is left before anything is made of it."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self._path, self._data = path, data
        self._end = min(len(data), _MAX_HEADER_BYTES)
        self.position = 0

    def read_counts(self) -> tuple[int, int]:
        """Of tensors and of metadata entries."""
        if self._end < _PREFIX.size:
            self._fail(f"is too short for a GGUF file: {self._end} bytes, and the shortest has {_PREFIX.size}")
        magic, version, num_tensors, num_entries = _PREFIX.unpack_from(self._data)
        if magic != _MAGIC:
            self._fail(f"is not a GGUF file: it begins with {magic!r}")
        self.position = len(_MAGIC)
        if version not in _VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
                self._fail("is a big-endian GGUF file; only little-endian ones are supported")
            self._fail(f"has GGUF version {version}; {' and '.join(map(str, _VERSIONS))} are supported")
        self.position = _PREFIX.size
        counted = f"counts {num_tensors} tensors and {num_entries} metadata entries"
        needed = num_tensors * _MIN_TENSOR_INFO_BYTES + num_entries * _MIN_METADATA_ENTRY_BYTES
        if needed > self._end - self.position:
            self._fail(f"is truncated or corrupt: it {counted}, more than the file can hold")
        if num_tensors > _MAX_TENSORS or num_entries > _MAX_METADATA_ENTRIES:
            self._fail(f"{counted}; at most {_MAX_TENSORS} and {_MAX_METADATA_ENTRIES} are read")
        return num_tensors, num_entries

    def read_metadata(
        self, num_entries: int, keep_array: KeepArray, stop_before: str | None
    ) -> dict[str, MetadataValue]:
        metadata: dict[str, MetadataValue] = {}
        for index in range(num_entries):
            start = self.position
            key = self._read_string(f"key {index} of the metadata")
            if stop_before is not None and key.startswith(stop_before):
                break
            if key in metadata:
                self._fail(f"has the metadata key {key} twice", start)
            metadata[key] = self._read_value(key, keep_array)
        return metadata

    def check_alignment(self, alignment: MetadataValue) -> int:
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self._fail(f"has general.alignment {alignment!r}, which must be a power of two")
        return alignment

    def read_tensor_infos(self, num_tensors: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for index in range(num_tensors):
            start = self.position
            name = self._read_string(f"name of tensor {index}")
            if name in tensors:
                self._fail(f"has the tensor {name} twice", start)
            (num_dims,) = _U32.unpack_from(self._data, self._take(4, f"number of dimensions of tensor {name}"))
            if not 1 <= num_dims <= _MAX_DIMS:
                self._fail(f"has tensor {name} with {num_dims} dimensions; 1 to {_MAX_DIMS} are allowed", start)
            layout = struct.Struct(f"<{num_dims}QIQ")
            *sizes, type_code, offset = layout.unpack_from(self._data, self._take(layout.size, f"tensor {name}"))
            if offset % alignment:
                self._fail(f"has tensor {name} at offset {offset}, not a multiple of the alignment {alignment}", start)
            tensors[name] = TensorInfo(name, tuple(sizes[::-1]), type_code, offset)
        return tensors

    def _read_value(self, key: str, keep_array: KeepArray) -> MetadataValue:
        (kind,) = _U32.unpack_from(self._data, self._take(4, f"type of {key}"))
        if kind == _STRING:
            return self._read_string(key)
        if kind == _ARRAY:
            return self._read_array(key, keep_array)
        if kind not in _SCALARS:
            self._fail(f"has {key} of unknown type {kind}", self.position - 4)
        layout = _SCALARS[kind]
        value: Scalar = layout.unpack_from(self._data, self._take(layout.size, key))[0]
        return value

    def _read_array(self, key: str, keep_array: KeepArray) -> MetadataValue:
        start = self._take(_TYPE_AND_LENGTH.size, f"element type and length of {key}")
        kind, length = _TYPE_AND_LENGTH.unpack_from(self._data, start)
        keep = keep_array(key)
        if kind == _STRING:
            if length * _U64.size > self._end - self.position:
                self._fail_beyond(f"{length} strings of {key}", length * _U64.size)
            return self._read_strings(key, length) if keep else self._skip_strings(key, length)
        if kind not in _SCALARS:
            self._fail(f"has {key}, an array of unsupported element type {kind}", start)
        start = self._take(length * _SCALARS[kind].size, f"{length} elements of {key}")
        if not keep:
            return SkippedArray(length)
        return list(struct.unpack_from(f"<{length}{_SCALAR_CODES[kind]}", self._data, start))

    def _read_strings(self, key: str, length: int) -> list[str]:
        # Apart from _read_string, for speed: vocabularies have hundreds of thousands.
        data, position, end, unpack = self._data, self.position, self._end, _U64.unpack_from
        values: list[str] = []
        try:
            for _ in range(length):
                start = position + 8
                position = start + unpack(data, position)[0]
                if position > end:
                    self._fail_beyond(f"element {len(values)} of {key}", position - start, start)
                values.append(data[start:position].decode())
        except UnicodeDecodeError as error:
            self._fail(f"has text that is not UTF-8 in element {len(values)} of {key}: {error.reason}", start)
        except struct.error:
            self._fail_beyond(f"length of element {len(values)} of {key}", 8, position)
        self.position = position
        return values

    def _skip_strings(self, key: str, length: int) -> SkippedArray:
        data, position, end, unpack = self._data, self.position, self._end, _U64.unpack_from
        for index in range(length):
            if position + 8 > end or (position := position + 8 + unpack(data, position)[0]) > end:
                self._fail(f"is truncated or corrupt: element {index} of {key} ends behind the last byte, {end}")
        self.position = position
        return SkippedArray(length)

    def _read_string(self, what: str) -> str:
        (size,) = _U64.unpack_from(self._data, self._take(8, f"length of {what}"))
        start = self._take(size, what)
        try:
            return self._data[start : start + size].decode()
        except UnicodeDecodeError as error:
            self._fail(f"has text that is not UTF-8 in {what}: {error.reason}", start + error.start)

    def _take(self, num_bytes: int, what: str) -> int:
        """Where the next `num_bytes` start; steps over them."""
        start = self.position
        if num_bytes > self._end - start:
            self._fail_beyond(what, num_bytes)
        self.position = start + num_bytes
        return start

    def _fail_beyond(self, what: str, num_bytes: int, offset: int | None = None) -> NoReturn:
        start = self.position if offset is None else offset
        limit = "" if self._end == len(self._data) else f" of the {_MAX_HEADER_BYTES} that a header may have"
        left = max(self._end - start, 0)
        self._fail(f"is truncated or corrupt: {what} takes {num_bytes} bytes, {left} are left{limit}", start)

    def _fail(self, problem: str, offset: int | None = None) -> NoReturn:
        raise GgufError(self._path, problem, self.position if offset is None else offset)
