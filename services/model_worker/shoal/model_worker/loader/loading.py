"""From a path to a model that is ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shoal.model_worker.loader.checkpoint import Checkpoint
from shoal.model_worker.loader.dummy_checkpoint import DummyCheckpoint
from shoal.model_worker.loader.errors import ModelLoadError
from shoal.model_worker.loader.gguf_checkpoint import GgufCheckpoint
from shoal.model_worker.loader.safetensors_checkpoint import SafetensorsCheckpoint
from shoal.model_worker.models.config import ModelConfig, ModelConfigError
from shoal.model_worker.models.registry import Model, find_model_class

DType = Literal["float32", "bfloat16", "auto"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
Progress = Callable[[int, int], None]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, what it is, and its identity."""

    model: Model
    config: ModelConfig
    dtype: torch.dtype
    digest: str
    """Hex SHA-256 of the weight files, the configuration and the dtype: all that decides the values computed."""


def load_model(
    path: Path,
    *,
    dtype: DType = "auto",
    load_format: LoadFormat = "auto",
    progress: Progress | None = None,
    seed: int = 0,
    device: str = "cpu",
    max_model_len: int = 0,
) -> LoadedModel:
    """Loads a GGUF file or a directory with config.json and safetensors files.

    dtype auto is bfloat16, or float32 for a checkpoint that says it is float32. `progress` is called with
    (bytes done, bytes in all) of the stored tensors. `seed` is for load_format dummy. `device`: where the model will
    run, as torch names it. `max_model_len`: the longest context that will be asked for, see `ModelConfig.limited_to`;
    0: the longest possible. Raises ModelLoadError.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ModelLoadError(path, f"dtype {dtype!r} is not supported; use float32, bfloat16 or auto")
    checkpoint = open_checkpoint(path, load_format, seed, device)
    try:
        config = checkpoint.config.limited_to(max_model_len) if max_model_len else checkpoint.config
        model_class = find_model_class(config.architecture)
        shapes = model_class.tensor_shapes(config)
        _check_tensors(checkpoint, shapes)
        resolved = _DTYPES["float32" if config.stored_dtype == "float32" else "bfloat16"]
        resolved = resolved if dtype == "auto" else _DTYPES[dtype]
        # Hashing (about 2 GB/s, without the GIL) hides behind dequantising and packing.
        with ThreadPoolExecutor(1) as executor, torch.inference_mode():
            content = executor.submit(_content_digest, checkpoint, seed)
            weights = _CheckpointWeights(checkpoint, torch.device(device), resolved, shapes, progress)
            model = model_class(config, weights, resolved)
            digest = _model_digest(content.result(), config, resolved)
    except ModelConfigError as error:
        raise ModelLoadError(path, str(error)) from None
    return LoadedModel(model, config, resolved, digest)


def open_checkpoint(path: Path, load_format: LoadFormat = "auto", seed: int = 0, device: str = "cpu") -> Checkpoint:
    """Reads and checks headers only; `device` is where dummy weights are drawn. Raises ModelLoadError."""
    if not path.exists():
        raise ModelLoadError(path, "does not exist")
    if load_format == "dummy":
        return DummyCheckpoint(path, seed, device)
    if load_format == "auto":
        load_format = "gguf" if path.is_file() or not any(path.glob("*.safetensors*")) else "safetensors"
    if load_format == "safetensors":
        if not path.is_dir():
            raise ModelLoadError(path, "must be a directory with config.json and .safetensors files")
        return SafetensorsCheckpoint(path)
    if load_format != "gguf":
        raise ModelLoadError(path, f"load format {load_format!r} is unknown; use auto, safetensors, gguf or dummy")
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise ModelLoadError(path, f"has no .safetensors files and {len(files)} .gguf files; name the file to load")
        path = files[0]
    return GgufCheckpoint(path)


def _check_tensors(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    found = checkpoint.shapes
    missing = [name for name in shapes if name not in found]
    if missing:
        raise ModelLoadError(checkpoint.path, f"lacks {len(missing)} tensors: {_listed(missing)}")
    wrong = [f"{name} is {found[name]}, not {shape}" for name, shape in shapes.items() if found[name] != shape]
    if wrong:
        raise ModelLoadError(checkpoint.path, f"has {len(wrong)} tensors of the wrong shape: {_listed(wrong)}")
    unexpected = [name for name in found if name not in shapes and not _is_redundant(name, checkpoint.config)]
    if unexpected:
        raise ModelLoadError(
            checkpoint.path,
            f"has {len(unexpected)} tensors that {checkpoint.config.architecture} does not use: {_listed(unexpected)}",
        )


def _is_redundant(name: str, config: ModelConfig) -> bool:
    """Tensors that some exporters write although they follow from the configuration."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


class _CheckpointWeights:
    """`Weights` over a checkpoint, counting progress."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        shapes: Mapping[str, tuple[int, ...]],
        progress: Progress | None,
    ) -> None:
        self._checkpoint, self._dtype, self._progress = checkpoint, dtype, progress
        self._device = device
        self._total_bytes = sum(checkpoint.num_bytes(name) for name in shapes)
        self._done_bytes = 0

    def take(self, name: str) -> Tensor:
        tensor = self._checkpoint.read(name).to(self._device, self._dtype).contiguous()
        self._done_bytes += self._checkpoint.num_bytes(name)
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)
        return tensor


def _content_digest(checkpoint: Checkpoint, seed: int) -> str:
    """Of one file, its SHA-256; of several, that of their names and digests; of dummy weights, that of the seed."""
    digests = []
    for file in checkpoint.files:
        with file.open("rb") as stream:
            digests.append((file.name, hashlib.file_digest(stream, "sha256").hexdigest()))
    if len(digests) == 1:
        return digests[0][1]
    listing = "".join(f"{digest} {name}\n" for name, digest in digests) or f"dummy {seed}\n"
    return hashlib.sha256(listing.encode()).hexdigest()


def _model_digest(content: str, config: ModelConfig, dtype: torch.dtype) -> str:
    text = f"shoal.model.v1\n{content}\n{config.digest}\n{str(dtype).removeprefix('torch.')}\n"
    return hashlib.sha256(text.encode()).hexdigest()
