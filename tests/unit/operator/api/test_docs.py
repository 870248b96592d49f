"""The page about manifests has every field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import inspect

from shoal.operator.api.spec import InferenceServiceSpec

PAGE = (Path(__file__).parents[4] / "docs" / "manifest.md").read_text()


def fields(info: inspect.Type, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, name) of every field that holds a value."""
    match info:
        case inspect.Metadata():
            yield from fields(info.type, path)
        case inspect.UnionType():
            for option in info.types:
                yield from fields(option, path)
        case inspect.VarTupleType():
            yield from fields(info.item_type, path)
        case inspect.StructType():
            for field in info.fields:
                yield f"{path}{field.encode_name}", field.encode_name
                yield from fields(field.type, f"{path}{field.encode_name}.")


def test_every_field_is_there() -> None:
    named = set(re.findall(r"[A-Za-z0-9]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
    missing = {path for path, name in fields(inspect.type_info(InferenceServiceSpec)) if name not in named}
    assert not missing
