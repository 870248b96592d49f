"""Hugging Face repositories, through huggingface_hub: its cache, its credentials, its mirrors (`HF_ENDPOINT`)."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from shoal.artifacts.cache import require_space
from shoal.artifacts.download import Progress, RetryableError, RetryPolicy, retry
from shoal.artifacts.errors import ArtifactError, ArtifactNotFound
from shoal.artifacts.source import HubSource

TOKENIZER_PATTERNS: Final = (
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
)
MODEL_PATTERNS: Final = (*TOKENIZER_PATTERNS, "*.safetensors")
IGNORED_PATTERNS: Final = ("*/*",)
"""Folders of a repository hold other formats of the same weights (onnx, openvino, original)."""
_T = TypeVar("_T")


def fetch_hub(
    source: HubSource,
    *,
    hub_cache: Path | None,
    patterns: Sequence[str],
    offline: bool,
    policy: RetryPolicy,
    progress: Progress | None,
    ignored: Sequence[str] = IGNORED_PATTERNS,
) -> Path:
    """The folder of the repository's snapshot, or the one file. `hub_cache` None: huggingface_hub's own cache."""
    import huggingface_hub  # imported here: 300 ms that only those pay who use it

    arguments: dict[str, Any] = {
        "repo_id": source.repo_id,
        "revision": source.revision,
        "cache_dir": hub_cache,
        "endpoint": os.environ.get("HF_ENDPOINT"),
        "local_files_only": offline,
        "library_name": "shoal",
    }
    if source.filename is not None:
        arguments["filename"] = source.filename

        def fetch(**extra: Any) -> Any:
            return huggingface_hub.hf_hub_download(**arguments, **extra)
    else:
        arguments |= {"allow_patterns": list(patterns), "ignore_patterns": list(ignored)}

        def fetch(**extra: Any) -> Any:
            return huggingface_hub.snapshot_download(**arguments, **extra)

    total = None if offline else _require_space(fetch, source, hub_cache)
    extra = {} if progress is None else {"tqdm_class": _progress_bar(progress, total)}
    path = Path(_run(lambda: fetch(**extra), source, policy))
    if path.is_dir() and not any(path.iterdir()):
        raise ArtifactNotFound(f"hf://{source.repo_id}@{source.revision}: no file matches {', '.join(patterns)}")
    return path


def _require_space(fetch: Callable[..., Any], source: HubSource, hub_cache: Path | None) -> int | None:
    """Bytes to download, or None when the hub does not say; raises NoSpace when they do not fit."""
    import huggingface_hub.constants

    try:
        plan = fetch(dry_run=True)
    except Exception:  # the real attempt says what is wrong, or finds the files in the cache
        return None
    files = plan if isinstance(plan, list) else [plan]
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    folder = hub_cache or Path(huggingface_hub.constants.HF_HUB_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    if missing:
        require_space(folder, missing, f"hf://{source.repo_id}@{source.revision}")
    return missing


def _run(call: Callable[[], _T], source: HubSource, policy: RetryPolicy) -> _T:
    results: list[_T] = []

    def attempt() -> None:
        try:
            results.append(call())
        except Exception as error:
            raise _translate(error, source) from error

    retry(attempt, policy, f"hf://{source.repo_id}@{source.revision}", lambda: 0)
    return results[0]


def _translate(error: Exception, source: HubSource) -> Exception:
    from huggingface_hub import errors

    name = f"hf://{source.repo_id}@{source.revision}"
    if isinstance(error, errors.GatedRepoError):
        return ArtifactError(f"{name}: gated; accept its terms on the hub and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ArtifactNotFound(f"{name}: no such repository, or it is private: set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return ArtifactNotFound(f"{name}: the repository has no branch, tag or commit {source.revision!r}")
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error.__context__
        if cause is not None and not isinstance(cause, FileNotFoundError):
            return _translate_transport(cause, name)
        return ArtifactNotFound(f"{name}: not in the local cache, and the network is not to be used (offline)")
    if isinstance(error, errors.EntryNotFoundError):
        return ArtifactNotFound(f"{name}: no file {source.filename!r}; {_name_files(source)}")
    return _translate_transport(error, name)


def _translate_transport(error: BaseException, name: str) -> Exception:
    from huggingface_hub import errors

    if isinstance(error, (errors.HFValidationError, errors.OfflineModeIsEnabled)):
        return ArtifactError(f"{name}: {error}")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        message = f"the hub answered HTTP {status}"
        return (
            RetryableError(message) if status in (0, 408, 429) or status >= 500 else ArtifactError(f"{name}: {message}")
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return ArtifactError(f"{name}: {error.strerror or error}")
    return RetryableError(f"{type(error).__name__}: {error}")


def _name_files(source: HubSource) -> str:
    import huggingface_hub

    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        files = api.list_repo_files(source.repo_id, revision=source.revision)
    except Exception:
        return "its files could not be listed"
    close = difflib.get_close_matches(source.filename or "", files, n=5, cutoff=0.3) or files[:10]
    return f"of its {len(files)} files: {', '.join(close)}"


def _progress_bar(progress: Progress, total: int | None) -> type:
    """A tqdm class that reports bytes to `progress` and draws nothing."""
    from huggingface_hub.utils import tqdm

    lock = threading.Lock()
    received = [0]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes and n:
                with lock:
                    received[0] += int(n)
                    progress(received[0] if total is None else min(total, received[0]), total)

    return Bar
