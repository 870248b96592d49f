"""What loading onto a device is alike for all: fetching the model with progress, and describing what came of it."""

from __future__ import annotations

import torch

from shoal.artifacts import ArtifactError, LogProgress, resolve
from shoal.kernels.kv_layout import KVLayout
from shoal.kv_codec import BlockShape, Codec, make_codec
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_setup import Device, Progress, SetupError
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.loader import LoadedModel, ModelLoadError, load_model
from shoal.model_worker.step import Runner


def load_for_device(config: WorkerConfig, progress: Progress, device: str) -> LoadedModel:
    """`device` as torch names it. Raises SetupError."""
    try:
        progress("fetch", 0.0)
        path = resolve(config.model, progress=LogProgress(config.model), timeout_s=config.load_timeout_s)
        return load_model(
            path,
            dtype=config.dtype,
            load_format=config.load_format,
            progress=lambda done, total: progress("weights", done / total if total else 1.0),
            seed=config.seed,
            device=device,
            max_model_len=config.max_model_len,
        )
    except (ArtifactError, ModelLoadError) as error:
        raise SetupError(str(error)) from error


def codec_for(layout: KVLayout, name: str) -> Codec:
    """The form of blocks of a layout in a store; see `shoal.kv_codec`."""
    shape = BlockShape(
        num_groups=2 * layout.num_layers * layout.num_kv_heads,
        group_elements=layout.block_size * layout.head_dim,
        dtype="bfloat16" if layout.dtype == torch.bfloat16 else "float32",
    )
    return make_codec(name, shape)


def describe(loaded: LoadedModel, runner: Runner, *, kv_layout: str, kv_memory: KvMemory | None = None) -> Device:
    """A runner with the model that was loaded for it."""
    return Device(
        runner=runner,
        model_digest=loaded.digest,
        kv_layout=kv_layout,
        dtype=str(loaded.dtype).removeprefix("torch."),
        vocab_size=loaded.config.vocab_size,
        eos_token_ids=loaded.config.eos_token_ids,
        max_position=loaded.config.max_position_embeddings,
        kv_memory=kv_memory,
    )
