"""What is known of models without fetching them: from the model cache, and from small files of the Hugging Face Hub."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from shoal.artifacts import ArtifactError, HubSource, parse_source, resolve
from shoal.gguf import GgufError
from shoal.operator.api import ModelFacts
from shoal.operator.api.spec import Model
from shoal.operator.planner.model_uri import source_uri
from shoal.operator.substrate.model_facts import facts_of_config_json, read_model_facts

_MAX_KNOWN: Final = 256
_MAX_FILE_BYTES: Final = 64 << 20
_FETCH_TIMEOUT_S: Final = 30.0
_CONFIG: Final = "config.json"
_INDEX: Final = "model.safetensors.index.json"
"""Of weights in several files: it has the size of all of them."""
_ELEMENT_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
_log = structlog.get_logger("shoal.operator")


@dataclasses.dataclass(slots=True)
class _Question:
    """What is being read, or was."""

    answer: concurrent.futures.Future[ModelFacts | None] = dataclasses.field(init=False)
    answered_s: float | None = None
    """When there was an answer; None until then."""


class KnownModels:
    """Answers within `wait_s`; what arrives later is there for the next question. Thread-safe.

    Answers are remembered for `keep_s`: a branch of the hub moves, and a model may be fetched into the cache meanwhile.
    """

    def __init__(
        self,
        *,
        asks_hub: bool,
        cache_dir: Path | None = None,
        wait_s: float = 2.0,
        keep_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """asks_hub: whether there may be connections to the hub. cache_dir: None for `$SHOAL_CACHE_DIR`."""
        self._asks_hub = asks_hub
        self._cache_dir = cache_dir
        self._wait_s = wait_s
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, _Question] = OrderedDict()
        self._readers = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="model facts")

    def close(self) -> None:
        """Waits for no reader."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def find(self, model: Model) -> ModelFacts | None:
        """None when nothing is known, or not yet. Files of the author's machine are not looked for: here is another."""
        if not model.uri.startswith(("hf://", "pypi://")):
            return None
        try:
            return self._ask(source_uri(model)).result(self._wait_s)
        except (TimeoutError, concurrent.futures.CancelledError):
            return None

    def _ask(self, uri: str) -> concurrent.futures.Future[ModelFacts | None]:
        with self._lock:
            known = self._asked.get(uri)
            if known is not None and (known.answered_s is None or self._clock() - known.answered_s < self._keep_s):
                return known.answer
            question = self._asked[uri] = _Question()
            question.answer = self._readers.submit(self._answer, question, uri)
            while len(self._asked) > _MAX_KNOWN:
                self._asked.popitem(last=False)[1].answer.cancel()
            return question.answer

    def _answer(self, question: _Question, uri: str) -> ModelFacts | None:
        try:
            return self._read(uri)
        finally:
            question.answered_s = self._clock()

    def _read(self, uri: str) -> ModelFacts | None:
        try:
            return read_model_facts(resolve(uri, cache_dir=self._cache_dir, offline=True))
        except (ArtifactError, GgufError) as error:
            reason = str(error)
        if self._asks_hub:
            try:
                return self._read_hub(uri)
            except (ArtifactError, OSError, ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
                reason = str(error) or type(error).__name__
        _log.info("nothing is known of a model", uri=uri, reason=reason)
        return None

    def _read_hub(self, uri: str) -> ModelFacts | None:
        source = parse_source(uri)
        if not isinstance(source, HubSource) or source.filename is not None:
            return None
        config = self._fetch(source, _CONFIG)
        facts = facts_of_config_json(config)
        element_bytes = _ELEMENT_BYTES.get(str(config.get("torch_dtype") or config.get("dtype")))
        if element_bytes is None or "quantization_config" in config:
            return facts
        try:
            num_bytes = int(self._fetch(source, _INDEX)["metadata"]["total_size"])
        except (ArtifactError, ValueError, KeyError, TypeError, msgspec.DecodeError):
            return facts  # weights in one file have no index
        return dataclasses.replace(facts, num_parameters=num_bytes // element_bytes)

    def _fetch(self, source: HubSource, name: str) -> Any:
        uri = f"hf://{source.repo_id}@{source.revision}/{name}"
        path = resolve(uri, cache_dir=self._cache_dir, timeout_s=_FETCH_TIMEOUT_S)
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_FILE_BYTES))
