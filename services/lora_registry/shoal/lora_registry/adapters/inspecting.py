"""An adapter's folder to facts and a digest. Reads every byte: about 1 GB/s."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from shoal.lora_registry.adapters.base_model import BaseModel
from shoal.lora_registry.adapters.peft_config import CONFIG_FILE, WEIGHTS_FILE, PeftConfig, read_peft_config
from shoal.lora_registry.adapters.weights import Module, Tensor, pair, read_tensors
from shoal.lora_registry.errors import AdapterRefused

_DOMAIN: Final = b"shoal.lora.v1"
_CHUNK_BYTES: Final = 1 << 20
_EXPONENTS: Final[dict[str, tuple[Any, int]]] = {
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""How to look at elements, and the bits that are all set in infinities and NaN alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What a folder holds. Equal folders give equal ones."""

    digest: str
    """Of what it does, in hexadecimal."""
    rank: int
    alpha: float
    scaling: float
    target_modules: tuple[str, ...]
    """Last parts of names, sorted."""
    dtype: str
    num_parameters: int
    base_model: str
    """As its config names it."""
    min_num_layers: int
    hidden_size: int
    """0: not known."""


def inspect(folder: Path, base_model: BaseModel | None = None) -> Adapter:
    """Raises AdapterRefused when it cannot be served, OSError when it cannot be read."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise AdapterRefused(f"{name} is missing: an adapter is {CONFIG_FILE} and {WEIGHTS_FILE}")
    config = read_peft_config(folder / CONFIG_FILE)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    modules = pair(tensors, config.rank)
    _check_targets(config, modules)
    if base_model is not None:
        base_model.check(modules)
    layers = [module.layer for module in modules if module.layer is not None]
    inputs = {module.kind: module.num_inputs for module in modules}
    return Adapter(
        digest=_digest(folder / WEIGHTS_FILE, config, tensors),
        rank=config.rank,
        alpha=config.alpha,
        scaling=config.scaling,
        target_modules=tuple(sorted({module.kind for module in modules})),
        dtype=tensors[0].dtype,
        num_parameters=sum(config.rank * (module.num_inputs + module.num_outputs) for module in modules),
        base_model=config.base_model,
        min_num_layers=max(layers, default=-1) + 1,
        hidden_size=next((inputs[kind] for kind in ("q_proj", "k_proj", "v_proj", "gate_proj") if kind in inputs), 0),
    )


def _check_targets(config: PeftConfig, modules: Sequence[Module]) -> None:
    """Config and tensors are of one adapter. As in PEFT, a name stands for modules that end with it."""
    if config.target_modules is None:
        return
    used = set()
    for module in modules:
        matching = [each for each in config.target_modules if f".{module.name}".endswith(f".{each}")]
        if not matching:
            targets = ", ".join(config.target_modules)
            raise AdapterRefused(f"{WEIGHTS_FILE}: {module.name} is none of {CONFIG_FILE}'s target_modules ({targets})")
        used.update(matching)
    unused = [each for each in config.target_modules if each not in used]
    if unused:
        raise AdapterRefused(f"{CONFIG_FILE}: target_modules: {WEIGHTS_FILE} has no tensors of {', '.join(unused)}")


def _digest(path: Path, config: PeftConfig, tensors: Sequence[Tensor]) -> str:
    """sha256 over rank, scaling and, by name, every tensor: what is added to the base model, and nothing else.

    Each text goes with its length, numbers are little-endian: no two adapters give the same bytes.
    """
    digest = hashlib.sha256(_text(_DOMAIN) + struct.pack("<Id", config.rank, config.scaling))
    digest.update(struct.pack("<I", len(tensors)))
    with path.open("rb") as file:
        for tensor in sorted(tensors, key=lambda each: each.name):
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            digest.update(_text(tensor.name.encode()) + _text(tensor.dtype.encode()) + shape)
            _update(digest, file, tensor)
    return digest.hexdigest()


def _update(digest: Any, file: BinaryIO, tensor: Tensor) -> None:
    kind, mask = _EXPONENTS[tensor.dtype]
    file.seek(tensor.start)
    left = tensor.num_bytes
    while left:
        wanted = min(left, _CHUNK_BYTES)
        chunk = file.read(wanted)
        if len(chunk) < wanted:
            raise AdapterRefused(f"{WEIGHTS_FILE}: ended {left} bytes before its header says")
        elements = np.frombuffer(chunk, kind)
        if bool(((elements & mask) == mask).any()):
            raise AdapterRefused(f"{WEIGHTS_FILE}: {tensor.name} has infinities or NaN; its training failed")
        digest.update(chunk)
        left -= len(chunk)


def _text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value
