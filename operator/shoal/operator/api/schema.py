"""The spec's types as a structural schema, as a CustomResourceDefinition holds it (apiextensions.k8s.io/v1).

What the schema allows and what `checking.py` allows is the same, so that `kubectl apply` and `shoal validate` agree.
"""

from __future__ import annotations

import inspect as python_inspect
from typing import Any

import msgspec
from msgspec import inspect

Schema = dict[str, Any]


def structural_schema(kind: type[msgspec.Struct]) -> Schema:
    """The schema of a section and all below it. Raises TypeError for a type that Kubernetes has no schema for."""
    return _schema(inspect.type_info(kind))


def _schema(info: inspect.Type) -> Schema:
    match info:
        case inspect.Metadata():
            return _schema(info.type) | (info.extra_json_schema or {})
        case inspect.StructType():
            return _struct(info)
        case inspect.UnionType():
            return _union(info)
        case inspect.LiteralType():
            kind = "string" if isinstance(info.values[0], str) else "integer"
            return {"type": kind, "enum": sorted(info.values)}
        case inspect.IntType():
            return {"type": "integer", "format": "int64", **_range(info)}
        case inspect.FloatType():
            return {"type": "number", **_range(info)}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.StrType():
            return {"type": "string", **_text(info)}
        case inspect.DictType():
            return _mapping(info)
        case inspect.VarTupleType():
            return _list(info)
        case _:
            raise TypeError(f"no structural schema for {info}")


def _mapping(info: inspect.DictType) -> Schema:
    if isinstance(info.value_type, inspect.AnyType):  # Kubernetes has the schema
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    limits = {} if info.max_length is None else {"maxProperties": info.max_length}
    return {"type": "object", "additionalProperties": _schema(info.value_type), **limits}


def _struct(info: inspect.StructType) -> Schema:
    schema: Schema = {"type": "object", "description": python_inspect.getdoc(info.cls) or ""}
    schema["properties"] = {field.encode_name: _field(field) for field in info.fields}
    required = [field.encode_name for field in info.fields if field.required]
    return schema | ({"required": required} if required else {})


def _field(field: inspect.Field) -> Schema:
    schema = _schema(field.type)
    if isinstance(field.default, msgspec.Struct):
        schema["default"] = {}  # its own fields have the values
    elif isinstance(field.default, (bool, int, float, str)):
        schema["default"] = field.default
    return schema


def _union(info: inspect.UnionType) -> Schema:
    """`X | None`, where None is a field left out, or text and a number, where a quantity is meant."""
    options = [option for option in info.types if not isinstance(option, inspect.NoneType)]
    if len(options) == 1:
        return _schema(options[0])
    schemas = [_schema(option) for option in options]
    if sorted(schema["type"] for schema in schemas) != ["integer", "string"]:
        raise TypeError(f"no structural schema for {info}")
    merged: Schema = {}
    for schema in schemas:
        merged |= {name: value for name, value in schema.items() if name not in ("type", "format")}
    return merged | {"x-kubernetes-int-or-string": True}


def _list(info: inspect.VarTupleType) -> Schema:
    items = _schema(info.item_type)
    schema: Schema = {"type": "array", "items": items}
    if info.max_length is not None:
        schema["maxItems"] = info.max_length
    keys = [key for key in ("name", "type") if key in items.get("required", ())]
    if keys:
        schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys[:1]}
    return schema


def _range(info: inspect.IntType | inspect.FloatType) -> Schema:
    schema: Schema = {}
    if info.ge is not None:
        schema["minimum"] = info.ge
    if info.le is not None:
        schema["maximum"] = info.le
    if info.gt is not None:
        schema |= {"minimum": info.gt, "exclusiveMinimum": True}
    if info.lt is not None:
        schema |= {"maximum": info.lt, "exclusiveMaximum": True}
    return schema


def _text(info: inspect.StrType) -> Schema:
    limits = {"pattern": info.pattern, "minLength": info.min_length, "maxLength": info.max_length}
    return {name: limit for name, limit in limits.items() if limit is not None}
