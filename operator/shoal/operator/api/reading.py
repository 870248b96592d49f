"""YAML text to plain data that remembers lines. Stricter than YAML: no aliases, no duplicate keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shoal.operator.api.problems import ManifestError, Problem

MAX_MANIFEST_BYTES = 256 << 10
_MAX_DEPTH = 32
_NULL = "tag:yaml.org,2002:null"


@dataclass(slots=True)
class Document:
    """A parsed manifest: plain dicts, lists and scalars, and the line of each path."""

    value: Any
    lines: dict[str, int] = field(default_factory=dict)

    def line_of(self, path: str) -> int | None:
        """The line of `path`, or of the closest enclosing field that the file holds."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path)


def read_text(path: Path) -> str:
    """The manifest's text. Raises ManifestError when it is missing, too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ManifestError(str(path), [Problem("", f"cannot read it: {error.strerror or error}")]) from error
    if len(content) > MAX_MANIFEST_BYTES:
        limit = f"larger than {MAX_MANIFEST_BYTES} bytes, which no manifest is"
        raise ManifestError(str(path), [Problem("", limit)])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ManifestError(str(path), [Problem("", f"not UTF-8 text (byte {error.start})")]) from error


def read_document(text: str, source: str) -> Document:
    """Parses `text`. Raises ManifestError with every duplicate key, alias and over-deep field, or the syntax error."""
    nodes = _nodes(text, source)
    if len(nodes) > 1:
        message = f"holds {len(nodes)} documents; give one InferenceService a file"
        raise ManifestError(source, [Problem("", message)])
    (document,) = _documents(nodes, source)
    return document


def read_documents(text: str, source: str) -> list[Document]:
    """`read_document` for any number of them, but none; empty ones are left out. Lines are those of the file."""
    return _documents([node for node in _nodes(text, source) if node.tag != _NULL], source)


def _nodes(text: str, source: str) -> list[yaml.Node]:
    try:
        return list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        raise ManifestError(source, [Problem("", f"not YAML: {error.problem}", line)]) from error
    except yaml.YAMLError as error:
        raise ManifestError(source, [Problem("", f"not YAML: {error}")]) from error
    except RecursionError as error:
        raise ManifestError(source, [Problem("", f"nested deeper than {_MAX_DEPTH} levels")]) from error


def _documents(nodes: list[yaml.Node], source: str) -> list[Document]:
    if not nodes:
        raise ManifestError(source, [Problem("", "the file is empty")])
    documents, problems = [], []
    for node in nodes:
        reader = _Reader()
        documents.append(Document(reader.build(node, "", 0), reader.lines))
        problems += reader.problems
    if problems:
        raise ManifestError(source, problems)
    return documents


class _Reader:
    """Turns YAML nodes into plain data and collects what is wrong on the way."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._seen: set[int] = set()
        self._scalars = yaml.SafeLoader("")

    def build(self, node: yaml.Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if depth > _MAX_DEPTH:
            return self._refuse(path, f"nested deeper than {_MAX_DEPTH} levels", line)
        # An alias is the very node it refers to. Ten levels of ten aliases each make 10^10 nodes out of 1 KiB.
        if id(node) in self._seen:
            return self._refuse(path, "is a YAML alias; write the value out", line)
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            return self._refuse(path, f"cannot be read: {getattr(error, 'problem', None) or error}", line)

    def _build_mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
                self._refuse(path, "a key must be a word", line)
                continue
            child = f"{path}.{key}" if path else key
            if key in values:
                self._refuse(child, f"given twice, first on line {self.lines[child]}", line)
                continue
            self.lines[child] = line
            values[key] = self.build(value_node, child, depth + 1)
        return values

    def _refuse(self, path: str, message: str, line: int) -> None:
        self.problems.append(Problem(path, message, line))
