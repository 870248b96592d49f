"""Tuned constants of the GPU kernels, by GPU, dtype and shape: data beside each operation, in `<op>/configs/*.json`.

A document is `{"gpu": name, "source": text, "entries": [...]}`: the GPU's name as its driver reports it (null in
`default.json`), where the numbers come from, and flat objects with the fields of the operation's entry type. The first
entry that fits is taken, from the GPU's own document and then from `default.json`, which has one for every case.
Nothing is measured while serving: what is chosen depends on the GPU, dtypes and shapes alone.
`benchmarks/kernels_cuda.py --tune` writes documents.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
import typing
from collections.abc import Mapping
from typing import Any

import torch

DEFAULT = "default"
"""Stands for every GPU that has no document, and for kernels interpreted on a CPU."""

Entry = typing.TypeVar("Entry")


@functools.cache
def gpu_of(device: torch.device) -> str:
    """The name of the device's documents: `nvidia_h100_80gb_hbm3`, or `default` for what is no GPU."""
    return document_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else DEFAULT


def document_name(gpu: str) -> str:
    """The file, without `.json`, for a GPU as its driver names it."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16`, as entries name dtypes."""
    return str(dtype).removeprefix("torch.")


def load_entries(op: str, gpu: str, entry_type: type[Entry]) -> tuple[Entry, ...]:
    """The entries of an operation's package for `gpu` (see `gpu_of`), then those of `default.json`. Reads files.

    entry_type: a dataclass of int, str and optional fields, whose `__post_init__` may raise ValueError. Raises
    ValueError that names document, entry and field if a document is wrong.
    """
    folder = importlib.resources.files(f"shoal.kernels.{op}") / "configs"
    entries: list[Entry] = []
    for name in dict.fromkeys((gpu, DEFAULT)):
        file = folder / f"{name}.json"
        if file.is_file():
            entries += parse_document(file.read_text(), f"{op}/configs/{name}.json", name, entry_type)
    return tuple(entries)


def parse_document(text: str, path: str, name: str, entry_type: type[Entry]) -> list[Entry]:
    """`load_entries` of one document, whose file is `name`.json; `path` is for messages."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    _check_keys(document, path, {"gpu", "source", "entries"}, {"gpu", "source", "entries"})
    gpu, source, entries = document["gpu"], document["source"], document["entries"]
    if gpu is not None and not isinstance(gpu, str):
        raise ValueError(f"{path}: gpu must be a string or null, not {gpu!r}")
    if (DEFAULT if gpu is None else document_name(gpu)) != name:
        raise ValueError(f"{path}: gpu is {gpu!r}, which belongs to another file than {name}.json")
    if not isinstance(source, str) or not isinstance(entries, list):
        raise ValueError(f"{path}: source must be a string and entries a list")
    return [_parse_entry(entry, f"{path}: entries[{i}]", entry_type) for i, entry in enumerate(entries)]


def _parse_entry(entry: Any, path: str, entry_type: type[Entry]) -> Entry:
    fields = dataclasses.fields(entry_type)  # type: ignore[arg-type]
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    _check_keys(entry, path, {field.name for field in fields}, required)
    types = typing.get_type_hints(entry_type)
    for name, value in entry.items():
        allowed = typing.get_args(types[name]) or (types[name],)
        if type(value) not in allowed:  # not isinstance: true is no int
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"{path}.{name} must be {names}, not {value!r}")
    try:
        return entry_type(**entry)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_keys(document: Any, path: str, allowed: set[str], required: set[str]) -> None:
    if not isinstance(document, Mapping):
        raise ValueError(f"{path} must be an object, not {type(document).__name__}")
    if unknown := sorted(set(document) - allowed):
        raise ValueError(f"{path}: unknown {', '.join(unknown)}; known are {', '.join(sorted(allowed))}")
    if missing := sorted(required - set(document)):
        raise ValueError(f"{path}: {', '.join(missing)} missing")


def require_positive(**values: int) -> None:
    """ValueError that names what is below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def require_powers_of_two(**values: int) -> None:
    """ValueError that names what is no power of two: blocks of a Triton kernel and its warps must be."""
    for name, value in values.items():
        if value < 1 or value & (value - 1):
            raise ValueError(f"{name} must be a power of two, not {value}")
