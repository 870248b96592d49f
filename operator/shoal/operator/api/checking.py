"""Plain data to the spec, collecting every problem instead of stopping at the first, as msgspec alone does."""

from __future__ import annotations

import difflib
import typing
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from shoal.operator.api.problems import Problem

_S = TypeVar("_S", bound=msgspec.Struct)
_MAX_SHOWN = 80


def check(kind: type[_S], value: Any, path: str = "") -> tuple[_S | None, list[Problem]]:
    """Builds a `kind` from `value`, or tells everything that is wrong with it, with `path` before each field."""
    problems: list[Problem] = []
    _check_section(kind, value, path, problems)
    if problems:
        return None, problems
    return msgspec.convert(value, kind), problems


def _check_section(kind: type[msgspec.Struct], value: Any, path: str, problems: list[Problem]) -> None:
    if not isinstance(value, dict):
        problems.append(Problem(path, f"{_show(value)} is not a mapping of fields"))
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, field in fields.items():
        if field.required and name not in value:
            problems.append(Problem(_join(path, name), f"is required: {describe_allowed(field.type)}"))
    for key, item in value.items():
        child = _join(path, key)
        if key not in fields:
            problems.append(Problem(child, f"unknown field{_suggest(key, list(fields))}"))
            continue
        entry = _entry_of(fields[key].type)
        if entry is not None:
            _check_list(entry, item, child, problems)
            continue
        section = _section_of(fields[key].type)
        if section is not None and (item is not None or not _takes_none(fields[key].type)):
            _check_section(section, item, child, problems)
        elif section is None:
            _check_leaf(fields[key].type, item, child, problems)


def _check_list(kind: type[msgspec.Struct], value: Any, path: str, problems: list[Problem]) -> None:
    if not isinstance(value, list):
        problems.append(Problem(path, f"{_show(value)} is not a list; give {describe_allowed(kind)} for each entry"))
        return
    for index, item in enumerate(value):
        _check_section(kind, item, f"{path}[{index}]", problems)


def _check_leaf(kind: Any, value: Any, path: str, problems: list[Problem]) -> None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        if value is None:
            problems.append(Problem(path, f"has no value: leave the field out, or give {describe_allowed(kind)}"))
        else:
            meant = _meant(inspect.type_info(kind), value) if isinstance(value, str) else ""
            problems.append(Problem(path, f"{_show(value)} is not allowed; give {describe_allowed(kind)}{meant}"))


def describe_allowed(kind: Any) -> str:
    """What a field takes, for people: `one of auto, float32`, `an integer from 1 to 64`."""
    return _describe(inspect.type_info(kind))


def _meant(info: inspect.Type, value: str) -> str:
    """What a field's own `suggest` makes of a value that is not allowed."""
    match info:
        case inspect.Metadata(extra={"suggest": suggest}):
            return str(suggest(value))
        case inspect.Metadata():
            return _meant(info.type, value)
        case inspect.UnionType():
            return next(filter(None, (_meant(option, value) for option in info.types)), "")
        case _:
            return ""


def _describe(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata(extra={"allowed": allowed}):
            return str(allowed)
        case inspect.Metadata():
            return _describe(info.type)
        case inspect.LiteralType():
            values = [str(value) for value in info.values]
            return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
        case inspect.IntType(ge=low, le=high):
            return _describe_range("an integer", low, high)
        case inspect.FloatType(gt=low, le=high) if low is not None and high is not None:
            return f"a number above {low:g}, at most {high:g}"
        case inspect.FloatType(ge=low, le=high) if low is not None and high is not None:
            return f"a number from {low:g} to {high:g}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "text"
        case inspect.DictType():
            return "a mapping of text to text"
        case inspect.UnionType():
            return " or ".join(_describe(option) for option in info.types if not isinstance(option, inspect.NoneType))
        case inspect.StructType():
            required = [field.encode_name for field in info.fields if field.required]
            return f"a mapping with {', '.join(required)}" if required else "a mapping"
        case _:
            return "another type"


def _describe_range(noun: str, low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{noun} from {low} to {high}"
    if low is not None:
        return f"{noun} of at least {low}"
    return noun if high is None else f"{noun} of at most {high}"


def _section_of(kind: Any) -> type[msgspec.Struct] | None:
    """The section behind `Section`, `Section | None` and their annotated forms."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    for option in typing.get_args(kind):
        found = _section_of(option) if not isinstance(option, (str, msgspec.Meta)) else None
        if found is not None:
            return found
    return None


def _entry_of(kind: Any) -> type[msgspec.Struct] | None:
    """The section that each entry of a list is; None when `kind` is no list of sections."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return _section_of(typing.get_args(kind)[0]) if typing.get_origin(kind) is tuple else None


def _takes_none(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _suggest(key: str, known: list[str]) -> str:
    by_folded = {name.lower().replace("_", ""): name for name in known}
    folded = key.lower().replace("_", "").replace("-", "")
    close = difflib.get_close_matches(folded, by_folded, n=1)
    if close:
        return f"; did you mean {by_folded[close[0]]!r}?"
    return f"; known: {', '.join(sorted(known))}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
