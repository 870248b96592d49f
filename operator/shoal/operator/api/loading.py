"""File to `InferenceService`: reading, checking and the rules, with the problems of each stage listed at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.operator.api.checking import check
from shoal.operator.api.problems import ManifestError, Problem
from shoal.operator.api.reading import Document, read_document, read_documents, read_text
from shoal.operator.api.rules import Machine, find_contradictions
from shoal.operator.api.spec import API_VERSION, KIND, InferenceService


def load_manifest(path: Path | str, machine: Machine | None = None) -> InferenceService:
    """Reads and checks a manifest file. Raises ManifestError with every problem found.

    Without `machine` only what is wrong everywhere is refused, so that a manifest meant for a large machine can be
    checked on a small one.
    """
    path = Path(path)
    return parse_manifest(read_text(path), str(path), machine)


def parse_manifest(text: str, source: str, machine: Machine | None = None) -> InferenceService:
    """`load_manifest` for text; `source` stands before the problems."""
    document = read_document(text, source)
    service, problems = _build(document, lambda service: find_contradictions(service, machine))
    if service is None or problems:
        raise ManifestError(source, problems)
    return service


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """One document of a file."""

    service: InferenceService
    _document: Document

    def located(self, problems: Iterable[Problem]) -> list[Problem]:
        """With their lines in the file, and in this order."""
        return _located(self._document, problems)


def load_manifests(
    path: Path, find_more: Callable[[InferenceService], list[Problem]] = lambda service: []
) -> list[LoadedManifest]:
    """All that a file holds, at least one. Raises ManifestError with every problem of all of them.

    find_more: what else is wrong with one that is right so far. Objects of other projects' kinds beside them, such as a
    Secret, are left to the API server.
    """
    loaded, problems = [], []
    documents = read_documents(read_text(path), str(path))
    for document in [found for found in documents if not _is_of_others(found.value)] or documents:
        service, wrong = _build(document, lambda service: find_contradictions(service) or find_more(service))
        problems += wrong
        if service is not None:
            loaded.append(LoadedManifest(service, document))
    if problems:
        raise ManifestError(str(path), problems)
    return loaded


def _build(
    document: Document, find_problems: Callable[[InferenceService], list[Problem]]
) -> tuple[InferenceService | None, list[Problem]]:
    """The service, if its fields can be read, and what is wrong with it."""
    other = _recognise(document.value)
    if other is not None:
        return None, _located(document, [other])
    service, problems = check(InferenceService, document.value)
    if service is not None:
        problems = find_problems(service)
    return service, _located(document, problems)


def _recognise(value: Any) -> Problem | None:
    """Tells a manifest of something else apart from a faulty one, whose fields are worth listing."""
    if not isinstance(value, dict):
        return Problem(
            "", f"holds {type(value).__name__} instead of an {KIND} with apiVersion, kind, metadata and spec"
        )
    kind, version = value.get("kind"), value.get("apiVersion")
    if isinstance(kind, str) and kind != KIND:
        return Problem("kind", f"{kind!r} is not served here; give {KIND}")
    if isinstance(version, str) and version != API_VERSION:
        return Problem("apiVersion", f"{version!r} is not known; give {API_VERSION}")
    return None


def _is_of_others(value: Any) -> bool:
    version = value.get("apiVersion") if isinstance(value, dict) else None
    return isinstance(version, str) and version.partition("/")[0] != API_VERSION.partition("/")[0]


def _located(document: Document, problems: Iterable[Problem]) -> list[Problem]:
    located = [dataclasses.replace(problem, line=document.line_of(problem.path)) for problem in problems]
    return sorted(located, key=lambda problem: problem.line or 0)
