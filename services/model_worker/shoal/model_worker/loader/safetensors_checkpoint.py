"""Directories of safetensors files, as Hugging Face publishes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from shoal.model_worker.loader.errors import ModelLoadError
from shoal.model_worker.models.config import ModelConfig, ModelConfigError
from shoal.model_worker.models.hf_config import parse_hf_config

_MAX_HEADER_BYTES = 100_000_000
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F32", "F16", "BF16"}


@dataclass(frozen=True, slots=True)
class _Entry:
    file: Path
    shape: tuple[int, ...]
    num_bytes: int


class SafetensorsCheckpoint:
    """See `Checkpoint`. Every header is read and checked against its file's size when the directory is opened."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.config = read_config(directory / "config.json")
        expected = _indexed_files(directory)
        self.files = tuple(sorted(set(expected.values()))) if expected else _listed_files(directory)
        self._entries: dict[str, _Entry] = {}
        for file in self.files:
            for name, entry in _read_header(file).items():
                if name in self._entries:
                    raise ModelLoadError(file, f"tensor {name} is also in {self._entries[name].file.name}")
                self._entries[name] = entry
        for name, file in expected.items():
            if name not in self._entries or self._entries[name].file != file:
                raise ModelLoadError(
                    directory / _INDEX, f"tensor {name} is not in {file.name}, where the index puts it"
                )
        self._handles: dict[Path, Any] = {}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `Checkpoint.shapes`."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def num_bytes(self, name: str) -> int:
        """See `Checkpoint.num_bytes`."""
        return self._entries[name].num_bytes

    def read(self, name: str) -> Tensor:
        """See `Checkpoint.read`."""
        file = self._entries[name].file
        try:
            if file not in self._handles:
                self._handles[file] = safe_open(str(file), framework="pt")
            tensor: Tensor = self._handles[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(file, f"cannot read tensor {name}: {error}") from None
        return tensor


def read_config(path: Path) -> ModelConfig:
    """Parses a config.json. Raises ModelLoadError."""
    document = _read_json(path)
    try:
        return parse_hf_config(document)
    except ModelConfigError as error:
        raise ModelLoadError(path, str(error)) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelLoadError(path, f"is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ModelLoadError(path, f"holds a JSON {type(document).__name__}, not an object")
    return document


def _indexed_files(directory: Path) -> dict[str, Path]:
    """Tensor name to file, from the index of a sharded checkpoint; empty if there is none."""
    index = directory / _INDEX
    if not index.exists():
        return {}
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(index, "has no weight_map")
    files = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelLoadError(index, f"weight_map puts {name} in {file!r}, which is not a file name")
        files[name] = directory / file
    return files


def _listed_files(directory: Path) -> tuple[Path, ...]:
    files = tuple(sorted(directory.glob("*.safetensors")))
    if not files:
        raise ModelLoadError(directory, "has no .safetensors file")
    if len(files) > 1 and not (directory / "model.safetensors").exists():
        raise ModelLoadError(directory, f"has {len(files)} .safetensors files but no {_INDEX}")
    return (directory / "model.safetensors",) if len(files) > 1 else files


def _read_header(file: Path) -> dict[str, _Entry]:
    """The tensors of one file. The format: length as little-endian u64, that much JSON, then the data."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelLoadError(file, f"is not a safetensors file: header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise ModelLoadError(file, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelLoadError(file, f"header (bytes 8 to {8 + length}) is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ModelLoadError(file, "header is not a JSON object")
    data_start = 8 + length
    return {name: _check_entry(file, name, e, data_start, size) for name, e in header.items() if name != "__metadata__"}


def _check_entry(file: Path, name: str, entry: Any, data_start: int, size: int) -> _Entry:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
        valid = 0 <= begin <= end and all(n >= 0 for n in shape)
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise ModelLoadError(file, f"header entry of tensor {name} is malformed")
    if data_start + end > size:
        raise ModelLoadError(
            file, f"is truncated: tensor {name} ends at byte {data_start + end}, the file at {size}; download it again"
        )
    if dtype not in _FLOATS:
        raise ModelLoadError(file, f"tensor {name} has dtype {dtype}; only {', '.join(sorted(_FLOATS))} are supported")
    return _Entry(file, shape, end - begin)
