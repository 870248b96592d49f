"""Fetching the configured model and loading it onto a device, with progress."""

from __future__ import annotations

from shoal.artifacts import ArtifactError, LogProgress, resolve
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.engine_setup import Progress, SetupError
from shoal.model_worker.loader import LoadedModel, ModelLoadError, load_model


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
        )
    except (ArtifactError, ModelLoadError) as error:
        raise SetupError(str(error)) from error
