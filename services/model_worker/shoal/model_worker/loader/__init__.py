"""Weights and configuration from files."""

from shoal.model_worker.loader.errors import ModelLoadError
from shoal.model_worker.loader.loading import DType, LoadedModel, LoadFormat, load_model, open_checkpoint

__all__ = ["DType", "LoadFormat", "LoadedModel", "ModelLoadError", "load_model", "open_checkpoint"]
