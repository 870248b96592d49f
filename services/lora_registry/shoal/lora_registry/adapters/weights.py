"""Reads the header of adapter_model.safetensors, and pairs A and B of each module.

safetensors' own reader checks the header: sizes, offsets that neither overlap nor leave holes, bounds. Nothing of the
file is run; pickles are refused by their first bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from shoal.lora_registry.adapters.peft_config import WEIGHTS_FILE
from shoal.lora_registry.errors import AdapterRefused

ELEMENT_BYTES: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER_BYTES: Final = 16 << 20
MAX_TENSORS: Final = 65_536
_NAME: Final = re.compile(r"(?:base_model\.model\.)?(?P<module>[A-Za-z0-9_.]{1,400})\.lora_(?P<part>[AB])\.weight")
_LAYER: Final = re.compile(r"\.(?:layers|h|blocks)\.(\d{1,5})\.")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One of the file's."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in the file."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Module:
    """What is added to one module of the base model."""

    name: str
    """Such as model.layers.0.self_attn.q_proj."""
    num_inputs: int
    num_outputs: int

    @property
    def kind(self) -> str:
        """Such as q_proj."""
        return self.name.rpartition(".")[2]

    @property
    def layer(self) -> int | None:
        """Of the base model; None for what is in none."""
        found = _LAYER.search(f".{self.name}")
        return int(found[1]) if found else None


def read_tensors(path: Path) -> list[Tensor]:
    """In the order in which they lie. Raises AdapterRefused, OSError."""
    data_start = _data_start(path)
    tensors: list[Tensor] = []
    try:
        with safe_open(path, framework="np") as file:
            names: Sequence[str] = file.offset_keys()
            if not 1 <= len(names) <= MAX_TENSORS:
                raise AdapterRefused(f"{WEIGHTS_FILE}: {len(names)} tensors; an adapter has 1 to {MAX_TENSORS}")
            for name in names:
                found = file.get_slice(name)
                dtype, shape = str(found.get_dtype()), tuple(found.get_shape())
                if dtype not in ELEMENT_BYTES:
                    raise AdapterRefused(f"{WEIGHTS_FILE}: {name}: {dtype}; known: {', '.join(ELEMENT_BYTES)}")
                num_bytes = math.prod(shape) * ELEMENT_BYTES[dtype]
                tensors.append(Tensor(name, dtype, shape, data_start, num_bytes))
                data_start += num_bytes  # no holes: safetensors refuses those
    except SafetensorError as error:
        raise AdapterRefused(f"{WEIGHTS_FILE}: damaged or cut: {error}") from error
    return tensors


def _data_start(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(8)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise AdapterRefused(f"{WEIGHTS_FILE}: is a pickle, which runs code when it is read; save it as safetensors")
    num_bytes = int.from_bytes(head, "little")
    if len(head) < 8 or not 2 <= num_bytes <= MAX_HEADER_BYTES:
        raise AdapterRefused(f"{WEIGHTS_FILE}: no safetensors file, or one with a header of over {MAX_HEADER_BYTES} B")
    return 8 + num_bytes


def pair(tensors: Sequence[Tensor], rank: int) -> list[Module]:
    """Modules by name, each with A of [rank, inputs] and B of [outputs, rank]. Raises AdapterRefused."""
    dtypes = sorted({tensor.dtype for tensor in tensors})
    if len(dtypes) > 1:
        raise AdapterRefused(f"{WEIGHTS_FILE}: tensors of {' and '.join(dtypes)}; save all of them as one of these")
    parts: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        module, part = _read_name(tensor.name)
        if part in parts.setdefault(module, {}):
            raise AdapterRefused(f"{WEIGHTS_FILE}: {tensor.name}: lora_{part} of {module} is there twice")
        parts[module][part] = tensor
    modules = [_make_module(name, parts[name], rank) for name in sorted(parts)]
    for problem in _unlike(modules):
        raise AdapterRefused(f"{WEIGHTS_FILE}: {problem}")
    return modules


def _read_name(name: str) -> tuple[str, str]:
    found = _NAME.fullmatch(name)
    if found is None:
        hint = "; it is of DoRA" if "magnitude" in name else "; of embeddings" if "embedding" in name else ""
        raise AdapterRefused(
            f"{WEIGHTS_FILE}: {name[:200]!r} is neither MODULE.lora_A.weight nor MODULE.lora_B.weight{hint}"
        )
    return found["module"], found["part"]


def _make_module(name: str, parts: Mapping[str, Tensor], rank: int) -> Module:
    missing = {"A", "B"} - parts.keys()
    if missing:
        raise AdapterRefused(f"{WEIGHTS_FILE}: {name} has no lora_{missing.pop()}")
    a, b = parts["A"], parts["B"]
    if len(a.shape) != 2 or a.shape[0] != rank or 0 in a.shape:
        raise AdapterRefused(f"{WEIGHTS_FILE}: {a.name}: shape {list(a.shape)}; for r = {rank} it is [{rank}, inputs]")
    if len(b.shape) != 2 or b.shape[1] != rank or 0 in b.shape:
        raise AdapterRefused(f"{WEIGHTS_FILE}: {b.name}: shape {list(b.shape)}; for r = {rank} it is [outputs, {rank}]")
    return Module(name, a.shape[1], b.shape[0])


def _unlike(modules: Sequence[Module]) -> Iterator[str]:
    """Modules of a kind are of one size in all layers."""
    first: dict[str, Module] = {}
    for module in modules:
        if module.layer is None:
            continue
        other = first.setdefault(module.kind, module)
        if (other.num_inputs, other.num_outputs) != (module.num_inputs, module.num_outputs):
            yield (
                f"{module.name} is {module.num_inputs} to {module.num_outputs}, but {other.name} is "
                f"{other.num_inputs} to {other.num_outputs}: no model has such layers"
            )
